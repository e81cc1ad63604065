"""The mask-ratio sweep and the efficiency study: what a cell is, resumed, drawn and summed up."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from deltalens import load_study
from deltalens.errors import DeltaLensError
from deltalens.figures import draw
from deltalens.io.records import Cell, StudyRecord
from deltalens.numerics.workers import one_thread
from deltalens.reports.efficiency import summarize_efficiency
from deltalens.reports.trainings import summarize_sweep
from deltalens.studies.efficiency import efficiency
from deltalens.studies.engine import StudyWatch
from deltalens.studies.executors import Execution
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.training_plans import TrainingData
from deltalens.training.methods import read_methods
from deltalens.training.run import train
from deltalens.training.spec import TrainingSpec
from tests.support.specs import run_study, training_spec

METHODS = ("gmt", "random-mask", "one-off-drop", "hft")
SHARED: dict[str, Any] = {"steps": 3, "batch_size": 8, "learning_rate": 1e-2}


def sweep(base: Path, rows: Path, out: Path, **more: Any) -> StudyRecord:
    axes: dict[str, Any] = {"mask_ratios": "0.5,0.9", "seeds": 2, **more}
    source = TrainingData(model=base, data=rows, eval_data=[rows])
    return run_study(sweep_mask_ratio, METHODS, source, out, SHARED, **axes)


@pytest.fixture(scope="module")
def whole(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "study"
    sweep(base, rows, out)
    return out


def value(cells: pd.DataFrame, method: str, ratio: float, seed: int, metric: str = "loss") -> float:
    found = cells[
        (cells["method"] == method)
        & (cells["mask_ratio"] == ratio)
        & (cells["seed"] == seed)
        & (cells["metric"] == metric)
    ]["value"]
    assert len(found) == 1
    return float(found.iloc[0])


def test_a_cell_is_a_training(base: Path, rows: Path, whole: Path, tmp_path: Path) -> None:
    cells = load_study(whole).cells
    own = training_spec("gmt", mask_ratio="0.9", seed=1, **SHARED)
    alone = train(base, rows, tmp_path / "out", own, eval_data=[rows])
    assert value(cells, "gmt", 0.9, 1) == alone.metrics["loss"].value
    for method in METHODS[:3]:
        assert value(cells, method, 0.0, 1) == value(cells, "sft", 0.0, 1)
    assert value(cells, "hft", 0.0, 1) != value(cells, "sft", 0.0, 1)
    assert len({value(cells, method, 0.5, 0) for method in METHODS[:3]}) == 3
    assert value(cells, "gmt", 0.5, 0) != value(cells, "gmt", 0.5, 1)
    assert {file.name for file in whole.iterdir()} >= {"study.json", "cells.csv", "cells.jsonl"}
    assert not list(whole.glob(".cell")) + list(whole.glob(".sft"))


def test_a_sweep_that_was_stopped_goes_on(
    base: Path, rows: Path, whole: Path, tmp_path: Path
) -> None:
    seen: list[Cell] = []

    def stop(folder: Path, cell: Cell) -> None:
        seen.append(cell)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(base, rows, tmp_path / "study", watch=StudyWatch(on_cell=stop))
    sweep(base, rows, tmp_path / "study")
    assert (tmp_path / "study" / "cells.csv").read_bytes() == (whole / "cells.csv").read_bytes()


def test_two_at_once_give_the_same(base: Path, rows: Path, tmp_path: Path) -> None:
    source = TrainingData(model=base, data=rows, eval_data=[rows])
    with one_thread():
        for name, jobs in (("one", 1), ("two", 2)):
            axes: dict[str, Any] = {"mask_ratios": "0.5", "seeds": 2}
            axes["execution"] = Execution(jobs=jobs)
            run_study(sweep_mask_ratio, "one-off-drop", source, tmp_path / name, SHARED, **axes)
    tables = [(tmp_path / name / "cells.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]


def test_it_is_drawn_and_summed_up(whole: Path) -> None:
    names = {file.name for file in draw(whole)}
    assert names >= {"gmt_fig2.png", "gmt_fig2.svg", "gmt_tab1.png", "gmt_tab4.png"}
    summary = summarize_sweep(load_study(whole))
    text = " ".join(summary.sentences())
    assert all(name in text for name in ("sft", *METHODS))
    means = summary.as_json()["metrics"]["loss"]["gmt"]
    cells = load_study(whole).cells
    assert means["0.5"] == pytest.approx(
        (value(cells, "gmt", 0.5, 0) + value(cells, "gmt", 0.5, 1)) / 2
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mask_ratios": "0.5,1"}, "mask_ratios 1"),
        ({"seeds": 0}, "seeds 0"),
    ],
)
def test_a_sweep_that_cannot_be(
    base: Path, rows: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeltaLensError, match=message):
        sweep(base, rows, tmp_path / "study", **more)
    source = TrainingData(model=base, data=rows, eval_data=[rows])
    with pytest.raises(DeltaLensError, match="method 'lora'"):
        run_study(sweep_mask_ratio, "lora", source, tmp_path / "study", SHARED)
    with pytest.raises(DeltaLensError, match="give eval_data"):
        TrainingData(model=base, data=rows, eval_data=[])
    assert not (tmp_path / "study").exists()


def test_efficiency_knows_its_methods_in_whichever_order_they_are_named(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    """Plain fine-tuning comes first, named or not: the order is part of the identity."""
    spec = TrainingSpec(**SHARED)
    for names in ("hft", "sft,hft", "hft,sft"):
        methods = read_methods(names)
        how: dict[str, Any] = {"methods": methods, "repeats": 1, "steps": 1}
        record = efficiency(base, rows, tmp_path / "study", spec, **how)
        assert record.spec["methods"] == ["sft", "hft"]


def test_efficiency(base: Path, rows: Path, tmp_path: Path) -> None:
    spec = TrainingSpec(**SHARED)
    record = efficiency(base, rows, tmp_path / "study", spec, repeats=2, steps=2)
    assert set(record.cells["method"]) == {"sft", "random-mask", "gmt"}
    assert set(record.cells["repeat"]) == {0, 1}
    speed = record.cells[record.cells["metric"] == "samples_per_second"]["value"]
    assert (speed > 0).all()
    assert record.facts["flops_of_a_step"] > 2 * 3 * record.facts["parameters"]
    (table,) = summarize_efficiency(record).tables()
    by_name = {row[0]: row for row in table.rows}
    assert by_name["sft"][2] == "1.000 (1.000-1.000)"
    assert by_name["gmt"][-1] == "0.877 / 0.942"
    hooks = record.cells[record.cells["metric"] == "hook_share"].set_index("method")["value"]
    assert (hooks["sft"] == 0).all()
    assert (hooks["gmt"] > 0).all()
