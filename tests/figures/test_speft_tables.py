"""SPEFT's tables from studies' records: their numbers, what is missing, and what is refused."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import RecordError
from deltalens.figures import draw, draw_named
from deltalens.figures.defaults import draw_density_sweep, draw_mask_sweep
from tests.support.drawn_tables import draw_whole, entry, rows_of
from tests.support.mft_studies import COMPARED
from tests.support.mft_studies import write_study as write_mft_study
from tests.support.speft_studies import (
    DENSITIES,
    MASKS,
    METHODS,
    comparison,
    two_tasks,
    write_study,
)

SCORES = [f"speft-tab{number}" for number in (1, 2, 3, 9, 10, 11, 12)]
SETTINGS = [f"speft-tab{number}" for number in (5, 6, 7, 8)]


def test_a_place_is_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    folders = two_tasks(tmp_path)
    draw_whole("speft-tab1", folders)
    rows = rows_of(folders[0], "speft_tab1")
    found = entry(rows, "mrpc_dev, exact match (%), n = 300", method="PiSSA")
    values = [90, 93, 96]
    assert float(found["value"]) == pytest.approx(statistics.mean(values))
    assert float(found["deviation"]) == pytest.approx(statistics.stdev(values))
    assert (found["text"], found["seeds"], found["best"]) == ("93.00 ± 3.00", "3", "1")
    assert list(dict.fromkeys(row["method"] for row in rows)) == [
        *("before training", "SFT", "LoRA", "PiSSA", "Magnitude", "Gradient", "SNIP", "random")
    ]
    # The leading metric of each data set alone: losses are not averaged with scores.
    assert not any("loss" in row["column"] for row in rows)


def test_averages_are_over_tasks_with_the_mean_of_their_deviations(tmp_path: Path) -> None:
    folders = two_tasks(tmp_path)
    draw_whole("speft-tab1", folders)
    rows = rows_of(folders[0], "speft_tab1")
    pissa = entry(rows, "Avg.", method="PiSSA")
    assert float(pissa["value"]) == pytest.approx((82 + 93) / 2)
    # By the paper's caption; seed by seed it would be 1.5 times the deviation of each.
    assert float(pissa["deviation"]) == pytest.approx((1 + 3) / 2)
    assert (pissa["text"], pissa["best"]) == ("87.50 ± 2.00", "1")
    assert entry(rows, "Avg.", method="Gradient")["text"] == "82.50 ± 1.00"


def test_best_tasks_are_counted_among_what_competes(tmp_path: Path) -> None:
    folders = two_tasks(tmp_path)
    draw_whole("speft-tab1", folders)
    counts = {
        row["method"]: row["text"]
        for row in rows_of(folders[0], "speft_tab1")
        if row["column"] == "#"
    }
    assert counts == {
        **{"before training": "–", "SFT": "–"},
        **{"LoRA": "0", "PiSSA": "1", "Magnitude": "0", "Gradient": "1", "SNIP": "0"},
        **{"random": "0"},
    }
    said = (folders[0] / "speft_tab1.md").read_text()
    assert "Models as they are and the training of all weights do not compete." in said


def test_rows_that_look_equal_are_all_best(tmp_path: Path) -> None:
    values = {
        key: METHODS["speft:metric=gradient", key[1]] if key[0] == "lora" else value
        for key, value in METHODS.items()
    }
    folder = comparison(tmp_path / "s", values, trained_on="train", sets=("a", "b"))
    draw_whole("speft-tab1", folder)
    rows = rows_of(folder, "speft_tab1")
    assert [entry(rows, "#", method=name)["text"] for name in ("LoRA", "Gradient")] == ["2", "2"]


def test_a_task_that_is_missing_leaves_no_average(tmp_path: Path) -> None:
    first = comparison(tmp_path / "a")
    without = {key: value for key, value in METHODS.items() if key[0] != "lora"}
    second = comparison(
        tmp_path / "b",
        without,
        trained_on="mrpc_train",
        sets=["mrpc_dev"],
        methods=[*dict.fromkeys(key[0] for key in METHODS)],
    )
    draw_whole("speft-tab1", [first, second])
    rows = rows_of(first, "speft_tab1")
    assert entry(rows, "mnli_dev", method="LoRA")["text"] == "80.00 ± 1.00"
    assert entry(rows, "mrpc_dev", method="LoRA")["text"] == "–"
    assert entry(rows, "Avg.", method="LoRA")["text"] == "–"
    assert entry(rows, "seeds", method="LoRA")["text"] == "0–3"
    assert "mrpc is not finished: nothing of LoRA yet." in (first / "speft_tab1.md").read_text()


def test_a_study_that_goes_on_says_which_seeds_it_has(tmp_path: Path) -> None:
    values = {key: value for key, value in METHODS.items() if key != ("pissa", 2)}
    folder = comparison(tmp_path / "s", values)
    draw_whole("speft-tab1", folder)
    said = (folder / "speft_tab1.md").read_text()
    assert "mnli is not finished: 2 of 3 seeds of PiSSA." in said


def test_one_data_set_is_shown_with_all_its_metrics_and_no_average(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s")
    draw_whole("speft-tab3", folder)
    rows = rows_of(folder, "speft_tab3")
    heads = list(dict.fromkeys(row["column"].rpartition(", n")[0] for row in rows))
    assert heads[:2] == [
        "mnli_dev, exact match (%)",
        "mnli_dev, loss (nats per target token)",
    ]
    assert {row["column"] for row in rows} & {"Avg.", "#"} == set()
    assert entry(rows, "mnli_dev, loss", method="Gradient")["best"] == "1"


def test_variants_are_rows_of_their_own_and_not_the_papers(tmp_path: Path) -> None:
    values = {
        ("speft", 0): 0.8,
        ("speft:scope=tensor", 0): 0.7,
        ("speft:metric=fisher:refresh-every=100", 0): 0.6,
        ("speft:metric=fisher", 0): 0.5,
        ("lora:lora-rank=4", 0): 0.4,
        ("my-own", 0): 0.3,
    }
    settings = {"speft": {"metric": "snip"}, "speft:scope=tensor": {"metric": "gradient"}}
    folder = comparison(tmp_path / "s", values, settings=settings)
    draw_whole("speft-tab1", folder)
    rows = rows_of(folder, "speft_tab1")
    assert list(dict.fromkeys(row["method"] for row in rows)) == [
        "LoRA (lora rank 4)",
        "my-own",
        "Gradient (scope tensor)",
        "SNIP",
        "Fisher-Info (refreshed every 100 steps)",
        "Fisher-Info",
    ]
    beside = rows_of(folder, "speft_tab1", "Beside the paper: OPT-350m")
    assert {row["method"] for row in beside} == {"LoRA (lora rank 4)", "SNIP", "Fisher-Info"}


def test_a_budget_that_all_have_is_left_out_and_the_paper_has_the_row_all_the_same(
    tmp_path: Path,
) -> None:
    labels = ("metric=gradient:density=0.01", "metric=gradient:density=0.05", "metric=snip")
    values = {(f"speft:{label}:ties=keep", 0): 0.8 for label in labels}
    folder = comparison(tmp_path / "s", values)
    draw_whole("speft-tab1", folder)
    names = {"Gradient (density 0.01)", "Gradient (density 0.05)", "SNIP"}
    assert {row["method"] for row in rows_of(folder, "speft_tab1")} == names
    beside = rows_of(folder, "speft_tab1", "Beside the paper: OPT-350m")
    assert {row["method"] for row in beside} == names


def test_masks_are_static_or_dynamic_and_global_or_local(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "mask-sweep", MASKS, methods=["speft"])
    draw_whole("speft-tab4", folder)
    rows = rows_of(folder, "speft_tab4")
    found = [
        (row["S / D"], row["G / L"], row["refreshed every"], row["text"])
        for row in rows
        if row["column"].startswith("mnli_dev, exact")
    ]
    assert found == [
        ("S", "G", "–", "85.00 ± 1.00"),
        ("S", "L", "–", "86.00 ± 1.00"),
        ("S", "layer", "–", "84.00 ± 1.00"),
        ("D", "G", "100 steps", "83.00 ± 1.00"),
        ("D", "L", "100 steps", "80.00 ± 1.00"),
    ]
    beside = rows_of(folder, "speft_tab4", "Beside the paper: OPT-350m")
    theirs = {
        (row["S / D"], row["G / L"]): row["text"]
        for row in beside
        if (row["whose"], row["column"]) == ("the paper", "Avg.")
    }
    assert theirs == {
        **{("S", "G"): "88.46", ("S", "L"): "88.71", ("D", "G"): "86.14", ("D", "L"): "81.76"}
    }
    assert {row["text"] for row in beside if row["column"] == "rank"} == {"1", "2", "3", "4", "0"}


@pytest.mark.parametrize("name", [*SCORES, *SETTINGS])
def test_a_twin_has_its_own_number_and_the_papers_own_rows(tmp_path: Path, name: str) -> None:
    folder = comparison(tmp_path / "s")
    draw_whole(name, folder)
    text = (folder / f"{name.replace('-', '_')}.md").read_text()
    number = name.removeprefix("speft-tab")
    assert text.startswith(f"# SPEFT, Table {number}: ")
    assert f"(arXiv 2412.13488), Table {number}" in text


def test_a_study_of_speft_has_speft_s_tables_and_any_other_its_own(tmp_path: Path) -> None:
    assert {path.stem for path in draw(comparison(tmp_path / "s"))} == {
        *("speft_tab1", "speft_tab7")
    }
    other = write_mft_study(tmp_path / "mft", "comparison", COMPARED)
    assert {path.stem for path in draw(other)} == {"mft_tab1"}
    masks = write_study(tmp_path / "masks", "mask-sweep", MASKS)
    densities = write_study(tmp_path / "densities", "density-sweep", DENSITIES)
    assert [one.name for one in draw_mask_sweep(masks)] == ["speft_tab4"]
    assert [one.name for one in draw_density_sweep(densities)] == ["speft_fig2"]


def test_the_order_in_which_cells_finished_does_not_show(tmp_path: Path) -> None:
    forth = comparison(tmp_path / "a", methods=[])
    back = comparison(tmp_path / "b", dict(reversed(METHODS.items())), methods=[])
    for folder in (forth, back):
        draw_whole("speft-tab1", folder)
    one, other = (rows_of(folder, "speft_tab1") for folder in (forth, back))
    assert sorted(map(str, one)) == sorted(map(str, other))


def test_a_training_that_diverged_is_not_left_out(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", {**METHODS, ("lora", 1): math.nan})
    draw_whole("speft-tab1", folder)
    found = entry(rows_of(folder, "speft_tab1"), "mnli_dev, exact", method="LoRA")
    assert (found["text"], found["best"]) == ("nan", "0")
    beside = rows_of(folder, "speft_tab1", "Beside the paper: OPT-350m")
    assert entry(beside, "rank", method="LoRA", whose="this study")["text"] == "–"
    assert entry(beside, "rank", method="PiSSA", whose="this study")["text"] == "3"


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    one, same = comparison(tmp_path / "a"), comparison(tmp_path / "b")
    with pytest.raises(RecordError, match=r"a second study of mnli_dev beside .*; draw only one"):
        draw_whole("speft-tab1", [one, same])
    other = comparison(tmp_path / "c", trained_on="x", eval_data=[["mnli_dev", 7, "other"]])
    with pytest.raises(RecordError, match="'mnli_dev' has other rows than in"):
        draw_whole("speft-tab1", [one, other])
    empty = comparison(tmp_path / "empty", {})
    masks = write_study(tmp_path / "masks", "mask-sweep", MASKS)
    for name, folders in {
        **dict.fromkeys([*SCORES, *SETTINGS], (empty, masks)),
        "speft-tab4": (one,),
        "speft-fig2": (one, masks),
    }.items():
        for folder in folders:
            with pytest.raises(RecordError, match="with finished cells"):
                draw_named(name, folder)


def test_several_learning_rates_are_not_averaged(tmp_path: Path) -> None:
    """Where no rows have chosen one."""
    columns = ("scope", "refresh_every", "learning_rate", "seed")
    values = {(*key[:2], rate, key[2]): 0.5 for key in MASKS for rate in (1e-3, 5e-4)}
    grid: dict[str, Any] = {"learning_rates": [5e-4, 1e-3]}
    several = write_study(tmp_path / "several", "mask-sweep", values, columns=columns, **grid)
    with pytest.raises(RecordError, match="several learning rates, none of them chosen"):
        draw_named("speft-tab4", several)
    single = {key: value for key, value in values.items() if key[2] == 1e-3}
    one = write_study(tmp_path / "one", "mask-sweep", single, columns=columns, **grid)
    assert draw_named("speft-tab4", one)
