"""CONTRIBUTING's tables of folders and markers are what pytest collects."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.collected import (
    COLLECTED,
    ROOT,
    UNIT,
    Collected,
    folder_of,
    registered_markers,
)

ROW = re.compile(r"^\| `([\w/]+)` \| (.+?) \|(?: (.+?) \|)?$", re.MULTILINE)
CODE = re.compile(r"`(\w+)`")


def rows_below(heading: str) -> dict[str, tuple[str, str]]:
    """A table of CONTRIBUTING: the name in a row -> what stands in its other columns."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition(heading)[2].partition("\n\n")[0]
    return {name: (text, more) for name, text, more in ROW.findall(table)}


def folders() -> dict[str, tuple[str, str]]:
    return rows_below("| folder | what it holds | markers in it |")


def differing(suite: Collected, wanted: dict[str, set[str]]) -> list[str]:
    """Folders in which other markers were collected than the table names."""
    return [
        f"{folder}: the table has {sorted(wanted[folder])}, collected are {sorted(markers)}"
        for folder, counts in suite.counts.items()
        if (markers := set(counts) - {UNIT}) != wanted[folder]
    ]


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> Collected:
    """Of this run, the folders that were collected whole."""
    if request.config.getoption("lf", False):
        pytest.skip("a run of what failed last collects no whole folder")
    start = request.config.invocation_params.dir
    paths = [start / name.partition("::")[0] for name in request.config.args]
    whole = [path.resolve() for path in paths if path.is_dir()]
    everything = request.config.stash[COLLECTED]
    counts = {
        folder: markers
        for folder, markers in everything.counts.items()
        if any((ROOT / folder).is_relative_to(path) for path in whole)
    }
    if not counts:
        pytest.skip("no folder was collected whole")
    return Collected(counts, everything.unmarked)


def test_every_folder_of_tests_has_a_row() -> None:
    assert set(folders()) == {folder_of(path) for path in (ROOT / "tests").rglob("test_*.py")}


def test_a_folder_has_the_markers_that_its_row_names(suite: Collected) -> None:
    wanted = {folder: set(CODE.findall(markers)) for folder, (_, markers) in folders().items()}
    assert differing(suite, wanted) == []


def test_what_hypothesis_draws_is_marked_so(suite: Collected) -> None:
    assert suite.unmarked == []


def test_markers_are_those_that_pytest_knows() -> None:
    table = {name: text for name, (text, _) in rows_below("| marker | what it means |").items()}
    assert table == registered_markers()
    assert set(table) == {name for _, row in folders().values() for name in CODE.findall(row)}


def test_another_marker_in_a_folder_is_seen(suite: Collected) -> None:
    folder, counts = next(iter(suite.counts.items()))
    wanted = set(counts) - {UNIT}
    assert differing(Collected({folder: counts}), {folder: wanted}) == []
    assert len(differing(Collected({folder: counts}), {folder: wanted ^ {"gpu"}})) == 1


def test_one_command_counts_by_folder_and_marker() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.collected", str(Path("tests", "core"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    head, _, row = done.stdout.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:3]] == ["folder", UNIT]
    name, count = (cell.strip() for cell in row.split("|")[1:3])
    assert name == "`tests/core/`"
    assert int(count) > 20
