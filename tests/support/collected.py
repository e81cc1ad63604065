"""The tests by folder and marker, as pytest collects them.

`python -m tests.support.collected [PATH...]` prints how many there are of each, as a table.
"""

from __future__ import annotations

import io
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = "unit"
"""What a test without any of our markers is."""


@dataclass
class Collected:
    """What one run of pytest collected, before any of it was deselected."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Folder -> marker -> tests. A test with several markers counts at each."""
    unmarked: list[str] = field(default_factory=list)
    """Tests that hypothesis draws examples for and that are not marked so."""


COLLECTED = pytest.StashKey[Collected]()
"""Where `tests/conftest.py` keeps it."""


def registered_markers() -> dict[str, str]:
    """Our markers, and what pyproject.toml says of each."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines: list[str] = tomllib.loads(text)["tool"]["pytest"]["ini_options"]["markers"]
    return {name: meaning.strip() for name, _, meaning in (line.partition(":") for line in lines)}


def folder_of(path: Path) -> str:
    """The folder of a test's module, as CONTRIBUTING writes it."""
    return f"{path.parent.relative_to(ROOT).as_posix()}/"


def collected(items: Iterable[pytest.Item]) -> Collected:
    """Count the tests of a run."""
    ours, suite = set(registered_markers()), Collected()
    for item in items:
        names = {marker.name for marker in item.iter_markers()}
        counts = suite.counts.setdefault(folder_of(item.path), Counter())
        counts.update(names & ours or {UNIT})
        drawn = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if drawn and "property" not in names:
            suite.unmarked.append(item.nodeid)
    return suite


def table(suite: Collected) -> str:
    """The counts, a row for each folder."""
    columns = [UNIT, *registered_markers()]
    rows = [["folder", *columns], ["---"] * (1 + len(columns))]
    for folder, counts in sorted(suite.counts.items()):
        rows.append([f"`{folder}`", *(str(counts[name] or "") for name in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


class _Collector:
    """Counts the tests of a run."""

    def __init__(self) -> None:
        self.suite = Collected()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.suite = collected(items)


def main(paths: Sequence[str]) -> int:
    """Collect, and print the table alone; pytest's exit code."""
    collector, output = _Collector(), io.StringIO()
    with redirect_stdout(output):
        code = int(pytest.main(["--collect-only", "-q", *paths], plugins=[collector]))
    print(table(collector.suite) if code == 0 else output.getvalue())
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
