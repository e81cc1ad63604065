"""What the other summaries claim where a number is not finite, or has no direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deltalens.io.records import Cell, Measurement, StudyFolder, load_study
from deltalens.reports.landscape import LandscapeSummary, summarize_landscape
from deltalens.reports.layers import LayerSummary, summarize_layers
from deltalens.reports.trainings import SweepSummary, summarize_sweep

NAN, INF = math.nan, math.inf


def write(
    folder: Path,
    kind: str,
    values: Mapping[tuple[Any, ...], float],
    columns: tuple[str, ...],
    metric: str,
    spec: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    study = StudyFolder.open(folder, kind, dict(spec), columns)
    study.facts |= facts
    study.write_manifest()
    for setting, value in values.items():
        cell = dict(zip(columns, setting, strict=True))
        study.append(Cell(cell, {metric: Measurement(value)}, 0.1))
    study.close()


def layers(folder: Path, values: Mapping[tuple[str, str], float], **more: Any) -> LayerSummary:
    blocks = {str(block): {"entries": 10, "squares": 1.0} for block in range(3)}
    groups = more.pop("groups", [1])
    facts = {"blocks": blocks, "outside": {"entries": 0, "squares": 0.0}}
    cells = {(m, groups[0] if group else 0, group, 0): v for (m, group), v in values.items()}
    columns = ("method", "size", "group", "seed")
    metric = more.pop("metric", "loss")
    spec = {"method": "drop", "groups": groups}
    write(folder, "layer-sweep", cells, columns, metric, spec, {**facts, **more})
    return summarize_layers(load_study(folder))


ENDS = {("ft", ""): 1.0, ("base", ""): 3.0}


def test_group_that_is_not_finite_is_named_and_not_ranked(tmp_path: Path) -> None:
    found = layers(
        tmp_path,
        {
            **ENDS,
            ("drop", "0"): 2.0,
            ("drop", "1"): NAN,
            ("drop", "2"): 1.5,
            ("keep", "0"): INF,
            ("keep", "1"): 2.0,
            ("keep", "2"): 2.5,
        },
    )
    said = list(found.sentences())
    whole = "of the gain from tuning"
    assert f"single blocks: dropping block 0 costs most (50 % {whole}), then block 2 (25 %)" in said
    alone = f"kept alone, block 1 recovers most (50 % {whole}), then block 2 (25 %)"
    assert f"single blocks: {alone}" in said
    gaps = "block 0 kept alone, block 1 dropped"
    assert f"values of loss that are not finite are left out: {gaps}" in said


def test_layers_without_a_finite_fine_tune_are_not_held_against_it(tmp_path: Path) -> None:
    found = layers(tmp_path, {**ENDS, ("ft", ""): NAN, ("drop", "0"): 2.0, ("keep", "0"): 2.0})
    said = list(found.sentences())
    assert said[1] == "loss of the fine-tune is not finite, so nothing can be compared with it"
    assert not any("loses" in one or "what tuning gained" in one for one in said)
    assert "single blocks: kept alone, block 0 recovers most (1.0000)" in said


def test_groups_of_several_blocks_are_named_as_a_person_would(tmp_path: Path) -> None:
    values = {**ENDS, ("drop", "0-4"): 2.0, ("drop", "5-9"): 1.5, ("drop", "10-11"): 1.25}
    values[("drop", "12")] = 1.0
    said = list(layers(tmp_path, values, groups=[5]).sentences())
    assert (
        "groups of 5: dropping blocks 0-4 costs most (50 % of the gain from tuning), then blocks "
        "5-9 (25 %), blocks 10-11 (12 %); least: block 12 (0 %)"
    ) in said


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ((0.0, 0.0), "single blocks: dropping any of them makes loss no worse"),
        ((-0.5, -0.25), "single blocks: dropping any of them makes loss no worse"),
        (
            (0.5, 0.5),
            "single blocks: dropping any of them costs the same (25 % of the gain from tuning)",
        ),
    ],
)
def test_blocks_of_which_none_costs_more_are_not_ranked(
    tmp_path: Path, lost: tuple[float, float], said: str
) -> None:
    dropped = {("drop", str(block)): 1.0 + by for block, by in enumerate(lost)}
    sentences = list(layers(tmp_path, {**ENDS, **dropped}).sentences())
    assert said in sentences
    assert not any("costs most" in sentence for sentence in sentences)


def test_blocks_kept_alone_that_recover_alike_are_not_ranked(tmp_path: Path) -> None:
    kept = {("keep", str(block)): 2.5 for block in range(2)}
    said = list(layers(tmp_path, {**ENDS, **kept}).sentences())
    alike = "single blocks: kept alone, each recovers the same (25 % of the gain from tuning)"
    assert alike in said


def test_layers_measured_by_one_s_own_metric_need_its_direction(tmp_path: Path) -> None:
    values = {**ENDS, ("drop", "0"): 2.0, ("keep", "0"): 2.0}
    silent = layers(tmp_path / "a", values, metric="score")
    assert "unknown whether higher or lower is better" in list(silent.sentences())[1]
    assert silent.metrics[0].gained is None
    for way, gained in (("lower", 2.0), ("higher", -2.0)):
        found = layers(tmp_path / way, values, metric="score", better={"score": way})
        assert found.metrics[0].gained == gained


def sweep(folder: Path, values: Mapping[tuple[str, float, int], float]) -> SweepSummary:
    columns = ("method", "mask_ratio", "seed")
    write(folder, "mask-ratio-sweep", values, columns, "loss", {}, {})
    return summarize_sweep(load_study(folder))


def test_sweep_takes_no_best_from_what_is_not_finite(tmp_path: Path) -> None:
    found = sweep(
        tmp_path,
        {
            ("sft", 0.0, 0): 1.0,
            ("sft", 0.0, 1): 1.0,
            ("gmt", 0.2, 0): 1.0,
            ("gmt", 0.2, 1): 1.02,
            ("gmt", 0.5, 0): 0.5,
            ("gmt", 0.5, 1): NAN,
            ("gmt", 0.9, 0): 1.0,
            ("gmt", 0.9, 1): 1.0,
        },
    )
    said = list(found.sentences())
    assert said[1] == "gmt: best 1.0000 ± 0.0000 at mask ratio 0.9; within 5 % of sft up to 0.2"
    assert said[2] == "values of loss that are not finite are left out: gmt at 0.5 (seed 1)"
    assert ("0.5", "-", "nan") in found.tables()[0].rows
    assert math.isnan(found.as_json()["metrics"]["loss"]["gmt"]["0.5"])


@pytest.mark.parametrize(("group", "said"), [("4", "block 4"), ("4-7", "blocks 4-7")])
def test_layer_sweep_names_its_best_blocks(tmp_path: Path, group: str, said: str) -> None:
    values = {("ft", 0, "", 0): 1.0, ("mft", 1, group, 0): 0.5, ("mft", 1, "0", 0): 0.7}
    columns = ("method", "size", "group", "seed")
    write(tmp_path, "layer-sweep", values, columns, "loss", {"methods": ["mft"]}, {})
    sentences = summarize_sweep(load_study(tmp_path)).sentences()
    assert sum(f"mft: best 0.5000 at {said}" in sentence for sentence in sentences) == 1


def test_comparison_ranks_what_is_finite(tmp_path: Path) -> None:
    values = {("ft", 0): 1.0, ("mft", 0): NAN, ("mft", 1): 0.1, ("sft", 0): 0.9}
    write(tmp_path, "comparison", values, ("method", "seed"), "loss", {}, {})
    said = list(summarize_sweep(load_study(tmp_path)).sentences())
    assert said == [
        "loss, best first: sft 0.9000, ft 1.0000",
        "values of loss that are not finite are left out: mft (seed 0)",
    ]


MARKS = [
    {"name": "ft", "role": "origin", "a": 0.0, "b": 0.0, "distance": 0.0},
    {"name": "other", "role": "b", "a": 4.0, "b": 0.0, "distance": 0.0},
]


def line(
    folder: Path, grid: tuple[float, ...], ends: tuple[float, float], **more: Any
) -> LandscapeSummary:
    """Points at 0, 1, ...; the models at 0 and 4."""
    metric = more.pop("metric", "loss")
    plane = {"labels": ["along"], "marks": MARKS, "found": {}, "ranges": [[0.0, 4.0]], "terms": []}
    values = {
        **{(m["a"], 0.0, m["name"], "t"): v for m, v in zip(MARKS, ends, strict=True)},
        **{(float(at), 0.0, "grid", "t"): value for at, value in enumerate(grid)},
    }
    facts = {"plane": plane, "points": len(values), "data": ["t"], **more}
    spec = {"plane": "line", "grid": [len(grid)], "range": None}
    write(folder, "landscape", values, ("a", "b", "mark", "data"), metric, spec, facts)
    return summarize_landscape(load_study(folder))


@pytest.mark.parametrize(
    ("better", "best", "at"), [("higher", 5.0, (3.0, 0.0)), ("lower", 1.0, (1.0, 0.0))]
)
def test_best_point_goes_by_the_direction_that_was_said(
    tmp_path: Path, better: str, best: float, at: tuple[float, float]
) -> None:
    grid = (2.0, 1.0, 3.0, 5.0, 4.0)
    found = line(tmp_path, grid, (2.0, 4.0), metric="score", better={"t/score": better}).data[0]
    assert (found.best, found.best_at) == (best, at)
    assert found.best_mark == ("other" if better == "higher" else "ft")


def test_without_a_direction_there_is_no_best_point_model_or_barrier(tmp_path: Path) -> None:
    found = line(tmp_path, (2.0, 1.0, 3.0, 5.0, 4.0), (2.0, 4.0), metric="score")
    data = found.data[0]
    assert math.isnan(data.best)
    assert (data.best_mark, data.barrier) == (None, None)
    said = " ".join(found.sentences())
    assert "t score: unknown whether higher or lower is better" in said
    assert "better={'score'" in said
    assert "best:" not in said


def test_summary_says_where_a_model_is_better_than_the_grid_s_best_point(tmp_path: Path) -> None:
    worse = list(line(tmp_path / "a", (2.0, 1.5, 3.0, 3.0, 4.0), (1.0, 4.0)).sentences())
    assert worse[1].endswith("at the best grid point 1.0000, 1.0000 from ft; ft itself is better")
    better = list(line(tmp_path / "b", (1.0, 0.5, 3.0, 3.0, 4.0), (1.0, 4.0)).sentences())
    assert "itself" not in better[1]


def test_models_and_points_that_are_not_finite_are_in_no_claim(tmp_path: Path) -> None:
    found = line(tmp_path / "a", (1.0, NAN, 1.5, NAN, 2.0), (1.0, 2.0))
    said = list(found.sentences())
    assert (
        "t loss: no barrier between the two models; 2 points between them are left out, as they "
        "are not finite" in said
    )
    broken = line(tmp_path / "b", (1.0, 1.0, 1.0, 1.0, NAN), (NAN, NAN))
    assert (broken.data[0].best_mark, broken.data[0].barrier) == (None, None)
    assert "values of t loss that are not finite are left out: ft, other" in list(
        broken.sentences()
    )
    assert "None" not in " ".join(broken.sentences())
