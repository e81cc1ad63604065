"""Runs a streaming command, or ranks for a drop study, and prints the peak memory of the process.

As a program: `python -m tests.support.peak FT BASE inspect`, `... drop SCOPE STRATEGY OUT`,
`... rank SCOPE`. The last line of its output is the peak in bytes, as the kernel counted it.
"""

import re
import sys
from fractions import Fraction
from pathlib import Path


def main(ft: str, base: str, what: str, *rest: str) -> None:
    """Do it."""
    if what == "rank":
        rank(ft, base, rest[0])
    else:
        from deltalens.cli.main import app

        named = zip(("--scope", "--strategy", "-o"), rest, strict=False)
        options = [part for pair in named for part in pair]
        rate = ["--rate", "0.5"] if what == "drop" else []
        app([what, ft, base, *options, *rate], standalone_mode=False)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    print(1024 * int(found[1]))


def rank(ft: str, base: str, scope: str) -> None:
    """Select for 27 cells at once, unit by unit, as a drop study does before it edits a model."""
    from deltalens.io.matching import pair
    from deltalens.names import check_scope
    from deltalens.numerics.workers import workers
    from deltalens.studies.deltas import DeltaStream
    from deltalens.studies.selecting import DropSetting, select_unit

    settings = [
        DropSetting(strategy, Fraction(tenth, 10), 0)
        for strategy in ("salient", "trivial", "random")
        for tenth in range(1, 10)
    ]
    stream = DeltaStream()
    with workers() as mapper:
        for unit in pair(ft, base).units(check_scope(scope)):
            select_unit(unit, settings, stream, mapper=mapper)


if __name__ == "__main__":
    main(*sys.argv[1:])
