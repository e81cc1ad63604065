"""What `deltalens monitor` says at its end, and what its headings mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import deltalens
from deltalens.io.records import load_run
from deltalens.io.records.run import RunWriter
from deltalens.io.records.run_tables import TABLES
from deltalens.io.tables import Heading
from deltalens.reports import inspect, run
from deltalens.reports.run import summarize_run
from deltalens.reports.run_said import conclusions_of
from tests.support.records_of_runs import make_run
from tests.support.runs import succeeds

ROOT = Path(__file__).parents[2]
Bins = Mapping[float, int]
"""Lower edge -> entries; a bin is as wide as its lower edge."""


def write_run(
    folder: Path,
    bins: Sequence[Bins] = ({1.0: 100},),
    overlap: tuple[float, float] | None = None,
    close: bool = True,
    **values: Any,
) -> Path:
    """A run of one tensor with 100 entries, a step for each of the bins."""
    writer = RunWriter(folder, {"kind": "gradients", "every": 1, "mask_ratios": []})
    columns = {"entries": 100, "norm": 1.0, "zeros": 0, "nans": 0, "infinities": 0, "subnormals": 0}
    columns |= dict.fromkeys(("mean", "q50", "q90", "q99", "q999"), 0.1)
    for step, held in enumerate(bins):
        where = {"step": [step], "tensor": ["w"]}
        rows = {name: [value] for name, value in (columns | values).items()}
        writer.add("tensors", {**where, **rows})
        places = {"low": [*held], "high": [2 * low for low in held], "count": [*held.values()]}
        writer.add(
            "histograms", {"step": [step] * len(held), "tensor": ["w"] * len(held), **places}
        )
        if overlap is not None:
            jaccard, chance = overlap if step else (None, None)
            masks = {"mask_ratio": 0.9, "threshold": 0.1, "kept": 10, "entries": 100}
            masks |= {"jaccard_previous": jaccard, "chance_previous": chance, "coverage": 0.2}
            writer.add("masks", {**where, **{name: [value] for name, value in masks.items()}})
    writer.flush()
    if close:
        writer.close()
    return folder


def concluded(folder: Path) -> list[str]:
    record = load_run(folder)
    return conclusions_of(record, summarize_run(record))


@pytest.mark.parametrize(
    ("bins", "parts"),
    [
        # One of a hundred entries is ten times as large as the others: 100 of 199 squares.
        ({1.0: 99, 10.0: 1}, (100 / 199, 109 / 199)),
        ({1.0: 100}, (0.01, 0.1)),
        ({1.0: 10}, (0.1, 1.0)),
        # 90 entries are 0, and in no bin; a bin is cut in proportion.
        ({1.0: 2, 3.0: 2}, (9 / 20, 1.0)),
        ({1e300: 100}, (0.01, 0.1)),
    ],
)
def test_energy_of_the_largest_gradients_is_told(
    tmp_path: Path, bins: Bins, parts: tuple[float, float]
) -> None:
    summary = summarize_run(load_run(write_run(tmp_path / "run", [bins])))
    (group,) = summary.groups
    assert (group.energy_top_1, group.energy_top_10) == pytest.approx(parts)
    first, tenth = (f"{100 * part:.3g} %" for part in parts)
    said = f"the largest 1 % of entries hold {first}, the largest 10 % {tenth}: "
    assert any(said in sentence for sentence in concluded(tmp_path / "run"))


def test_energy_is_a_mean_over_steps_and_not_of_all_steps_together(tmp_path: Path) -> None:
    steps = [{1.0: 100}] * 18 + [{1.0: 99, 10.0: 1}, {1000.0: 100}]
    (group,) = summarize_run(load_run(write_run(tmp_path / "run", steps))).groups
    assert group.energy_top_1 == pytest.approx((100 / 199 + 0.01) / 2)


@pytest.mark.parametrize(
    ("values", "bins"), [({"norm": math.nan, "nans": 1}, {1.0: 99}), ({"zeros": 100}, {})]
)
def test_no_energy_is_told_of_a_gradient_that_is_zero_or_not_finite(
    tmp_path: Path, values: Mapping[str, float], bins: Bins
) -> None:
    said = concluded(write_run(tmp_path / "run", [bins], **values))
    assert not any("squared norm" in sentence for sentence in said)
    assert "nan" not in " ".join(said).split()


@pytest.mark.parametrize(
    ("overlap", "said"),
    [
        ((0.9, 0.05), "mostly the same entries"),
        ((0.3, 0.05), "partly the same entries"),
        ((0.06, 0.05), "hardly more of the same entries than at random"),
        ((0.05, 0.05), "hardly more of the same entries than at random"),
        ((0.01, 0.05), "hardly more of the same entries than at random"),
    ],
)
def test_overlap_is_told_beyond_chance(
    tmp_path: Path, overlap: tuple[float, float], said: str
) -> None:
    sentences = concluded(write_run(tmp_path / "run", [{1.0: 100}] * 2, overlap))
    assert sum(f": {said}" in sentence for sentence in sentences) == 1
    assert sentences[-1].startswith("Whether it pays to train the largest gradients alone: ")


def test_one_step_has_no_overlap_to_tell(tmp_path: Path) -> None:
    sentences = concluded(write_run(tmp_path / "run", overlap=(0.9, 0.05)))
    assert not any("Jaccard" in sentence for sentence in sentences)
    assert "the last of 1 logged steps alone, so its spread is unknown" in sentences[0]
    assert deltalens.load_run(tmp_path / "run").summary().startswith("1 step logged, step 0; ")


@pytest.mark.parametrize(
    ("stalled", "said"),
    [
        (0.25, "25 % stalled: they had a gradient, and the update was lost in rounding"),
        (0.0, "none that had a gradient stalled"),
    ],
)
def test_what_a_step_changes_and_what_stalls_is_told(
    tmp_path: Path, stalled: float, said: str
) -> None:
    updates = {"bits_changed": 0.75, "bf16_changed": 0.5, "stalled": stalled}
    sentences = concluded(write_run(tmp_path / "run", **updates))
    start = "A step changed the stored bits of 75 % of the entries, and would change 50 % if"
    (found,) = [sentence for sentence in sentences if sentence.startswith(start)]
    assert said in found
    warned = [sentence for sentence in sentences if sentence.startswith("warning: 1 tensor stalls")]
    assert len(warned) == (stalled > 0)


def test_gradients_that_are_not_finite_come_first(tmp_path: Path) -> None:
    sentences = concluded(make_run(tmp_path / "run", nans=1, norm=math.nan))
    assert sum("NaN in the gradient of" in sentence for sentence in sentences) == 2
    assert sentences[-1].startswith("Find the cause of the NaN or infinite gradients first")


def test_an_open_run_is_said_to_be_one(tmp_path: Path) -> None:
    going_on = "warning: not closed: the training goes on, or was stopped before its end"
    assert going_on in concluded(write_run(tmp_path / "open", close=False))
    assert going_on not in concluded(write_run(tmp_path / "closed"))


def test_terminal_and_object_say_the_same(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [{1.0: 100}] * 2, (0.3, 0.05), bits_changed=1.0)
    said = deltalens.load_run(tmp_path / "run").summary().splitlines()
    printed = " ".join(succeeds("monitor", tmp_path / "run", "--no-pictures").split())
    for sentence in said:
        assert printed.count(" ".join(sentence.split())) == 1


def test_every_heading_has_a_legend_below_its_tables(tmp_path: Path) -> None:
    updates = {"bits_changed": 1.0, "bf16_changed": 1.0, "stalled": 0.0}
    write_run(tmp_path / "run", [{1.0: 100}] * 2, (0.3, 0.05), **updates)
    shown, explained = set(), set()
    for table in summarize_run(load_run(tmp_path / "run")).tables():
        shown |= {head.split("\n")[0] for head in map(str, table.columns)}
        explained |= {line.partition(":")[0] for line in table.legend}
    assert explained == {heading.head for heading in run.HEADINGS}
    assert {head.removesuffix(" at 0.9") for head in shown} == explained


@pytest.mark.parametrize("headings", [inspect.HEADINGS, run.HEADINGS])
def test_the_page_on_records_has_every_heading(headings: Sequence[Heading]) -> None:
    page = (ROOT / "docs" / "records.md").read_text(encoding="utf-8").splitlines()
    for heading in headings:
        name = " ".join(heading.head.split())
        cells = (name, f"`{heading.column}`", heading.meaning, heading.unit)
        assert f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" in page, name


@pytest.mark.parametrize("heading", run.HEADINGS, ids=lambda heading: heading.head)
def test_the_columns_that_a_legend_names_exist(heading: Heading) -> None:
    for table, column in re.findall(r"(\w+)/(\w+)", heading.column):
        assert column in TABLES[table]
