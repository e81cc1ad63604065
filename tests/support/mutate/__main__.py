"""`python -m tests.support.mutate`: try mutants, and say how they were taken."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.mutate.verdict import Verdict

COUNT = 25_000
SEED = 0


def main() -> int:
    """Exit code 1 where a mutant was taken as none may be."""
    spec = _arguments()
    # A process forked from one with several threads may wait for a lock that nobody holds.
    os.environ.update(
        OMP_NUM_THREADS="1",
        NUMBA_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
    )
    from tests.support.mutate import hands

    hands.import_ours()
    folder = Path(tempfile.mkdtemp(prefix="mutate-"))
    os.environ["HF_HOME"] = str(folder / "home")
    begun = time.monotonic()
    try:
        hands.build(folder / "sound")
        built = time.monotonic() - begun
        numbers = spec.only or range(spec.first, spec.first + spec.count)
        found = []
        for verdict in hands.tried(numbers, folder, spec.seed, spec.jobs):
            found.append(verdict)
            if spec.only or (not verdict.sound and not spec.quiet):
                print(_line(verdict), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(_report(found, time.monotonic() - begun, built))
    if spec.json:
        spec.json.write_text("".join(json.dumps(one.as_json()) + "\n" for one in found))
    return int(not all(one.sound for one in found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.support.mutate", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED, help="of all mutants")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--count", type=int, default=COUNT, help="how many")
    parser.add_argument(
        "--only", type=int, nargs="+", help="these numbers, each with what it came to"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--json", type=Path, help="a file for every verdict")
    parser.add_argument("--quiet", action="store_true", help="faults only at the end")
    return parser.parse_args()


def _line(one: Verdict) -> str:
    parts = (
        one.number,
        one.kind,
        one.operation,
        one.file,
        one.damage,
        one.found,
        one.where,
        one.said,
    )
    return " | ".join(ascii(str(part)).strip("'\"") for part in parts if part != "")


def _report(found: list[Verdict], seconds: float, built: float) -> str:
    lines = [
        f"{'kind':22}{'mutants':>9}{'refused':>9}{'accepted':>10}{'resumed':>9}{'faults':>8}{'seconds':>9}"
    ]
    for kind in [*dict.fromkeys(sorted(one.kind for one in found)), ""]:
        some = [one for one in found if kind in ("", one.kind)]
        counts = Counter(one.found for one in some)
        faults = sum(not one.sound for one in some)
        resumed = sum(one.resumed for one in some)
        lines.append(
            f"{kind or 'all':22}{len(some):9,}{counts['refused']:9,}{counts['accepted']:10,}"
            f"{resumed:9,}{faults:8,}{sum(one.seconds for one in some):9.1f}"
        )
    lines.append(f"{seconds:.0f} s, of which the workbench took {built:.0f}")
    groups: dict[tuple[str, ...], list[Verdict]] = {}
    for one in found:
        if not one.sound:
            groups.setdefault((one.kind, one.found, one.where), []).append(one)
    for key, some in sorted(groups.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(some)} x {' | '.join(key)}")
        lines.append(
            f"    python -m tests.support.mutate --only {some[0].number}    {some[0].said[:200]!a}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
