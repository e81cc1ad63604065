"""Run the benchmarks named on the command line, or all of them; one JSON line each result."""

from __future__ import annotations

import sys

from benchmarks import (
    drop,
    gmt,
    landscape,
    layers,
    mft,
    probe,
    salience,
    speft,
    study,
    tasks,
    thresholds,
)

BENCHMARKS = {
    "thresholds": thresholds.run,
    "drop": drop.run,
    "study": study.run,
    "probe": probe.run,
    "gmt": gmt.run,
    "landscape": landscape.run,
    "mft": mft.run,
    "layers": layers.run,
    "salience": salience.run,
    "speft": speft.run,
    "tasks": tasks.run,
}


def main(names: list[str]) -> None:
    """Run these, in this order."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
