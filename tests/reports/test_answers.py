"""Each answer of a report, from numbers, at its edges: no data, one seed, NaN, a tie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deltalens.io.records import Cell, Measurement, StudyFolder, load_run, load_study
from deltalens.io.records.run import RunWriter
from deltalens.reports.answers import QUESTIONS, UNKNOWN, Answer, answers_of
from tests.support.evaluations import Scored, write_evaluation
from tests.support.finished_studies import KINDS, make_study
from tests.support.gmt_studies import write_efficiency
from tests.support.salience_studies import make_salience_study

Drops = Mapping[tuple[str, int], Mapping[float, float]]
"""(strategy, seed) -> rate -> value."""


def drop_study(
    folder: Path, drops: Drops, metric: str = "exact_match", stderr: float = 0.01, **more: Any
) -> Path:
    study = StudyFolder.open(
        folder,
        "drop-study",
        {"changed_only": False},
        ("strategy", "scope", "rate", "seed"),
    )
    study.facts = {"entries": 100, "unchanged": 0}
    study.write_manifest()
    for (strategy, seed), values in drops.items():
        for rate, value in values.items():
            setting = {"strategy": strategy, "scope": "tensor", "rate": rate, "seed": seed}
            metrics = {metric: Measurement(value, stderr, 200)}
            metrics |= {name: Measurement(one[rate], 0.02, 200) for name, one in more.items()}
            study.append(Cell(setting, metrics, 0.0))
    study.write_table([cell.setting for cell in study.cells])
    study.close()
    return folder


def answers(folder: Path) -> dict[str, Answer]:
    """Question -> its first answer."""
    found: dict[str, Answer] = {}
    for answer in answers_of(load_study(folder)):
        found.setdefault(answer.question, answer)
    return found


GOOD = {0.0: 0.8, 0.5: 0.79, 0.9: 0.5, 1.0: 0.2}


def test_the_redundant_share_is_the_last_rate_within_five_per_cent(tmp_path: Path) -> None:
    answer = answers(drop_study(tmp_path / "s", {("trivial", 0): GOOD}))["redundant"]
    assert answer.number == "50 %"
    assert "0.7900 against 0.8000; the base has 0.2000" in answer.sentence
    assert answer.uncertainty == "standard error 0.0100 over 200 examples"


def test_little_is_redundant_where_the_first_rate_is_too_far(tmp_path: Path) -> None:
    values = {0.0: 0.8, 0.5: 0.6, 1.0: 0.2}
    answer = answers(drop_study(tmp_path / "s", {("trivial", 0): values}))["redundant"]
    assert answer.number == "under 50 %"
    assert "not within 5 %" in answer.sentence


def test_a_tie_of_fine_tune_and_base_is_told_by_another_metric(tmp_path: Path) -> None:
    flat = dict.fromkeys(GOOD, 0.0)
    loss = {0.0: 1.0, 0.5: 1.01, 0.9: 1.8, 1.0: 2.0}
    answer = answers(drop_study(tmp_path / "s", {("trivial", 0): flat}, loss=loss))["redundant"]
    assert answer.sentence.startswith("exact_match is 0 for fine-tune and base alike, so by loss:")
    assert answer.number == "50 %"


def test_a_tie_on_every_metric_gains_nothing(tmp_path: Path) -> None:
    ends = {**dict.fromkeys(GOOD, 0.5), 0.9: 0.2}
    answer = answers(drop_study(tmp_path / "s", {("trivial", 0): ends}))["redundant"]
    assert "tuning gained nothing that dropping could lose" in answer.sentence


def test_a_fine_tune_that_is_no_number_leaves_nothing_to_compare(tmp_path: Path) -> None:
    values = {**GOOD, 0.0: math.nan}
    answer = answers(drop_study(tmp_path / "s", {("trivial", 0): values}))["redundant"]
    assert answer.number == UNKNOWN
    assert "not finite" in answer.sentence


def test_no_rate_between_the_ends_is_said(tmp_path: Path) -> None:
    ends = {0.0: 0.8, 1.0: 0.2}
    answer = answers(drop_study(tmp_path / "s", {("trivial", 0): ends}))["redundant"]
    assert (answer.number, answer.uncertainty) == (UNKNOWN, "nothing to compare")


@pytest.mark.parametrize(
    ("orders", "said"),
    [(1, "one random order, so the spread"), (3, "over 3 random orders")],
)
def test_random_orders_have_their_spread(tmp_path: Path, orders: int, said: str) -> None:
    drops = {
        ("random", seed): {**GOOD, 0.5: GOOD[0.5] - 0.001 * seed, 1.0: 0.2}
        for seed in range(orders)
    }
    answer = answers(drop_study(tmp_path / "s", drops))["redundant"]
    assert said in answer.uncertainty


def test_noise_above_the_tolerance_is_said(tmp_path: Path) -> None:
    answer = answers(drop_study(tmp_path / "s", {("trivial", 0): GOOD}, stderr=0.1))["redundant"]
    assert "more rows may move the rate" in answer.uncertainty


def test_no_standard_error_is_said(tmp_path: Path) -> None:
    found = answers(drop_study(tmp_path / "s", {("trivial", 0): GOOD}, stderr=math.nan))
    assert found["redundant"].uncertainty == "no standard error was recorded"


def test_few_large_changes_carry_it_only_if_small_ones_do_not(tmp_path: Path) -> None:
    lost = {**GOOD, 0.5: 0.3}
    few = {("salient", 0): lost, ("trivial", 0): GOOD}
    both = {("salient", 0): lost, ("trivial", 0): lost}
    assert "largest changes carry it" in answers(drop_study(tmp_path / "a", few))["where"].sentence
    where = answers(drop_study(tmp_path / "b", both))["where"]
    assert where.number == UNKNOWN
    assert where.sentence.startswith("No few entries carry it")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_study_is_answered_in_whole_sentences(tmp_path: Path, kind: str) -> None:
    found = answers_of(load_study(make_study(tmp_path / "study", kind)))
    assert found
    for answer in found:
        assert answer.question in QUESTIONS
        assert answer.number
        assert answer.uncertainty
        assert answer.sentence[-1] == "."
        assert "nan" not in f"{answer.sentence} {answer.uncertainty}".split()


def test_models_that_score_alike_are_said_to(tmp_path: Path) -> None:
    models = [Scored(name, {"loss": Measurement(1.0, 0.1, 9)}) for name in "ab"]
    write_evaluation(tmp_path / "e", models)
    answer = answers(tmp_path / "e")["best"]
    assert answer.sentence == "All 2 models have the same loss, 1.0000 ± 0.1000."


def test_one_repeat_has_no_spread(tmp_path: Path) -> None:
    folder = write_efficiency(tmp_path / "e", {"sft": [10.0], "gmt": [8.0]})
    answer = answers(folder)["cost"]
    assert (answer.number, answer.uncertainty) == (
        "+25.0 %",
        "one repeat, so the spread is unknown",
    )


def test_several_repeats_have_percentiles(tmp_path: Path) -> None:
    folder = write_efficiency(tmp_path / "e", {"sft": [10.0, 10.0], "gmt": [8.0, 10.0]})
    assert "10th to 90th percentile of 2 repeats" in answers(folder)["cost"].uncertainty


def test_masks_are_compared_with_one_another(tmp_path: Path) -> None:
    folder = make_salience_study(tmp_path / "s", "agreement", "sample")
    answer = answers(folder)["salience"]
    assert "of the model" in answer.sentence
    assert "two halves of the calibration data" in answer.uncertainty


def trained(folder: Path, cells: Mapping[tuple[str, float, int], float], **spec: Any) -> Path:
    """A sweep over mask ratios: (method, ratio, seed) -> loss."""
    methods = [*dict.fromkeys(method for method, _, _ in cells)]
    whole = {"methods": methods, "seeds": 1, "eval_data": [["test", 9, "f"]], **spec}
    study = StudyFolder.open(folder, "mask-ratio-sweep", whole, ("method", "mask_ratio", "seed"))
    study.facts = {"model": "base"}
    study.write_manifest()
    for (method, ratio, seed), loss in cells.items():
        setting = {"method": method, "mask_ratio": ratio, "seed": seed}
        study.append(Cell(setting, {"loss": Measurement(loss, 0.01, 9)}, 0.0))
    study.write_table([cell.setting for cell in study.cells])
    study.close()
    return folder


def test_one_seed_has_no_spread_between_trainings(tmp_path: Path) -> None:
    cells = {("sft", 0.0, 0): 1.0, ("gmt", 0.5, 0): 0.9}
    answer = answers(trained(tmp_path / "t", cells))["methods"]
    assert answer.number == "better by 0.1000"
    assert answer.uncertainty.startswith("one seed, so the spread between trainings is unknown")


def test_seeds_are_compared_pair_by_pair(tmp_path: Path) -> None:
    cells = {("sft", 0.0, seed): 1.0 + seed for seed in range(3)}
    cells |= {("gmt", 0.5, seed): 1.1 + seed for seed in range(3)}
    cells[("gmt", 0.5, 2)] += 0.001
    answer = answers(trained(tmp_path / "t", cells))["methods"]
    assert answer.number == "worse by 0.1003"
    assert answer.uncertainty == "standard error over 3 seeds, seed by seed"


def test_a_difference_within_its_error_is_none(tmp_path: Path) -> None:
    cells = {("sft", 0.0, 0): 1.0, ("gmt", 0.5, 0): 0.99}
    assert answers(trained(tmp_path / "t", cells))["methods"].number == "no clear difference"


def test_a_tie_of_methods_is_no_difference(tmp_path: Path) -> None:
    cells = {("sft", 0.0, 0): 1.0, ("gmt", 0.5, 0): 1.0}
    assert answers(trained(tmp_path / "t", cells))["methods"].number == "no difference"


def test_a_method_that_is_no_number_is_passed_over(tmp_path: Path) -> None:
    cells = {("sft", 0.0, 0): 1.0, ("gmt", 0.5, 0): math.nan, ("gmt", 0.9, 0): 1.2}
    answer = answers(trained(tmp_path / "t", cells))["methods"]
    assert "gmt at mask ratio 0.9" in answer.sentence
    assert answer.number == "worse by 0.2000"


def test_at_mask_ratio_zero_nothing_is_sparse(tmp_path: Path) -> None:
    cells = {("sft", 0.0, 0): 1.0, ("gmt", 0.0, 0): 0.5}
    assert answers_of(load_study(trained(tmp_path / "t", cells))) == []


def test_the_best_of_several_is_flattered_unless_other_rows_chose(tmp_path: Path) -> None:
    cells = {("sft", 0.0, 0): 1.0, ("gmt", 0.5, 0): 0.9, ("gmt", 0.9, 0): 1.1}
    said = "chosen as the best of 2 on the rows shown"
    assert said in answers(trained(tmp_path / "a", cells))["methods"].uncertainty
    other = answers(trained(tmp_path / "b", cells, choose_on=["choose", 9, "f"]))["methods"]
    assert said not in other.uncertainty


def test_without_a_dense_training_the_best_stands_alone(tmp_path: Path) -> None:
    answer = answers(trained(tmp_path / "t", {("gmt", 0.5, 0): 0.9}))["methods"]
    assert "nothing dense stands beside it" in answer.sentence


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", {"kind": "gradients"}).close()
    (answer,) = answers_of(load_run(tmp_path / "run"))
    assert (answer.number, answer.sentence) == (UNKNOWN, "No step is logged yet.")


def landscape(
    folder: Path, values: Mapping[float, float], plane: str = "line", **found: Any
) -> Path:
    """A line from `ft` at 0 to `base` at 2: position -> loss; the ends are marked."""
    marks = [
        {"name": "ft", "role": "origin", "a": 0.0, "b": 0.0, "distance": 0.0},
        {"name": "base", "role": "b", "a": 2.0, "b": 0.0, "distance": 0.0},
    ]
    shape = {"labels": ["way"], "marks": marks, "ranges": [[-1.0, 3.0]], "terms": []}
    spec = {"plane": plane, "grid": [5], "range": None}
    study = StudyFolder.open(folder, "landscape", spec, ("a", "b", "mark", "data"))
    study.facts = {"plane": {**shape, "found": found}, "points": len(values), "data": ["rows"]}
    study.write_manifest()
    names = {0.0: "ft", 2.0: "base"}
    for a, loss in values.items():
        setting = {"a": a, "b": 0.0, "mark": names.get(a, "grid"), "data": "rows"}
        study.append(Cell(setting, {"loss": Measurement(loss, 0.01, 9)}, 0.0))
    study.write_table([cell.setting for cell in study.cells])
    study.close()
    return folder


def test_a_barrier_is_the_rise_between_two_models(tmp_path: Path) -> None:
    answer = answers(landscape(tmp_path / "l", {0.0: 1.0, 1.0: 2.0, 2.0: 1.5}))["sharp"]
    assert answer.number == "0.7500"
    assert "at 50 % of the way" in answer.sentence


def test_no_barrier_is_said(tmp_path: Path) -> None:
    answer = answers(landscape(tmp_path / "l", {0.0: 1.0, 1.0: 1.25, 2.0: 1.5}))["sharp"]
    assert answer.sentence.startswith("No barrier:")


def test_points_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    values = {0.0: 1.0, 0.5: math.nan, 1.0: 2.0, 2.0: 1.5}
    assert (
        "1 points without a finite value"
        in answers(landscape(tmp_path / "l", values))["sharp"].uncertainty
    )


def test_a_rise_is_from_the_model_in_question(tmp_path: Path) -> None:
    values = {0.0: 1.0, -1.0: 0.9, 1.0: 1.4}
    answer = answers(landscape(tmp_path / "l", values, plane="random"))["sharp"]
    assert answer.number == "+0.4"
    assert "the lowest point is 0.1000 below ft" in answer.sentence


def test_a_plane_within_its_error_is_flat(tmp_path: Path) -> None:
    values = {0.0: 1.0, -1.0: 1.0, 1.0: 1.01}
    answer = answers(landscape(tmp_path / "l", values, plane="random"))["sharp"]
    assert "flat as far as seen" in answer.uncertainty


def test_a_plane_without_numbers_says_so(tmp_path: Path) -> None:
    values = {0.0: 1.0, 1.0: math.nan}
    answer = answers(landscape(tmp_path / "l", values, plane="random"))["sharp"]
    assert answer.number == UNKNOWN


def test_the_largest_eigenvalue_leads(tmp_path: Path) -> None:
    values = {0.0: 1.0, 1.0: 1.4}
    folder = landscape(tmp_path / "l", values, plane="hessian", eigenvalues=[4.0, 1.0])
    answer = answers_of(load_study(folder))[0]
    assert answer.number == "4.0000"
    assert "raises the loss by about 2.0000 d²" in answer.sentence


def layers(folder: Path, dropped: Mapping[str, float], ft: float = 1.0, base: float = 3.0) -> Path:
    """A layer sweep without training: block -> loss without its delta."""
    spec = {"method": "drop", "groups": [1]}
    study = StudyFolder.open(folder, "layer-sweep", spec, ("method", "size", "group", "seed"))
    part = {"entries": 10, "squares": 1.0}
    study.facts = {
        "entries": 100,
        "unchanged": 0,
        "blocks": dict.fromkeys("012", part),
        "outside": {"entries": 0, "squares": 0.0},
    }
    study.write_manifest()
    cells = {("ft", ""): ft, ("base", ""): base}
    cells |= {("drop", group): loss for group, loss in dropped.items()}
    for (method, group), loss in cells.items():
        setting = {"method": method, "size": 1 if group else 0, "group": group, "seed": 0}
        study.append(Cell(setting, {"loss": Measurement(loss, 0.01, 9)}, 0.0))
    study.write_table([cell.setting for cell in study.cells])
    study.close()
    return folder


def test_the_costliest_block_carries_most(tmp_path: Path) -> None:
    answer = answers(layers(tmp_path / "s", {"0": 1.1, "1": 1.8, "2": 1.2}))["where"]
    assert answer.number == "40 %"
    assert answer.sentence.startswith("Block 1: without its change, loss is 1.8000 against 1.0000")
    assert "not clearly more" not in answer.uncertainty


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"0": 1.1, "1": 1.8}, ("Block 1: without its change", "block 0 costs least")),
        ({"0-1": 1.1, "2": 1.8}, ("Block 2: without its change", "blocks 0-1 cost least")),
        ({"0": 1.1, "1-2": 1.8}, ("Blocks 1-2: without their change", "block 0 costs least")),
    ],
)
def test_blocks_are_one_or_several(
    groups: Mapping[str, float], said: tuple[str, str], tmp_path: Path
) -> None:
    answer = answers(layers(tmp_path / "s", groups))["where"]
    assert all(part in answer.sentence for part in said)


def test_a_block_within_two_errors_of_another_is_not_clearly_more(tmp_path: Path) -> None:
    answer = answers(layers(tmp_path / "s", {"0": 1.79, "1": 1.8, "2": 1.2}))["where"]
    assert "not clearly more than block 0" in answer.uncertainty
    assert "block 2" not in answer.uncertainty


def test_blocks_that_cost_alike_do_not_stand_out(tmp_path: Path) -> None:
    answer = answers(layers(tmp_path / "s", {"0": 1.5, "1": 1.5}))["where"]
    assert answer.sentence.startswith("No block stands out")


def test_a_block_that_is_no_number_is_not_the_costliest(tmp_path: Path) -> None:
    answer = answers(layers(tmp_path / "s", {"0": math.nan, "1": 1.5}))["where"]
    assert answer.sentence.startswith("Block 1")


def test_no_gain_from_tuning_is_not_shared_out(tmp_path: Path) -> None:
    answer = answers(layers(tmp_path / "s", {"0": 1.5, "1": 1.2}, base=0.5))["where"]
    assert "no gain to share out" in answer.sentence
