"""A grid of learning rates in a study: every rate is trained, and rows apart choose one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import deltalens
from deltalens import load_study
from deltalens.errors import DeltaLensError, RecordError
from deltalens.figures import draw
from deltalens.io.records import StudyRecord, chosen
from deltalens.reports.trainings import summarize_sweep
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.mft_sweeps import compare, sweep_data_ratio, sweep_layers
from deltalens.studies.training_plans import TrainingData
from deltalens.training.run import train
from tests.support.fake_training import FakeTraining, fake_trainings
from tests.support.runs import command
from tests.support.specs import run_study, training_spec
from tests.support.training_folders import write_rows

GRID = (2e-2, 1e-3)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to choose on."""
    rows = [{"prompt": f"{i}+3=", "completion": str(i + 3)} for i in range(8)]
    return write_rows(tmp_path_factory.mktemp("held") / "held.jsonl", rows)


@pytest.fixture
def source(base: Path, rows: Path, held: Path) -> TrainingData:
    return TrainingData(model=base, data=rows, eval_data=[rows], choose_on=held)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    return fake_trainings(monkeypatch)


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "cells.csv").read_bytes(), (folder / "study.json").read_bytes()


def values(record: StudyRecord, metric: str) -> dict[tuple[str, float, int], float]:
    cells = record.cells[record.cells["metric"] == metric]
    keys = zip(cells["method"], cells["learning_rate"], cells["seed"], strict=True)
    return dict(zip(keys, cells["value"], strict=True))


def frame(scores: dict[tuple[str, float, int], tuple[float, float]]) -> pd.DataFrame:
    """Cells with a test loss and one on the rows that choose."""
    return pd.DataFrame(
        [
            {"method": m, "learning_rate": rate, "seed": seed, "metric": name, "value": value}
            for (m, rate, seed), pair in scores.items()
            for name, value in zip(("loss", "loss@choose_on"), pair, strict=True)
        ]
    )


def test_every_rate_is_a_training_of_its_own(
    base: Path, rows: Path, held: Path, source: TrainingData, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {"steps": 3, "batch_size": 8}
    out = tmp_path / "s"
    record = run_study(
        compare, "sft,mft,l1-mask", source, out, shared, seeds=1, learning_rates=GRID
    )
    assert [*record.cells.columns[:3]] == ["method", "learning_rate", "seed"]
    found, on_held = values(record, "loss"), values(record, "loss@choose_on")
    assert {*found} == {
        ("ft", 0.0, 0),
        ("l1-mask", 0.0, 0),
        *((method, rate, 0) for method in ("sft", "mft") for rate in GRID),
    }
    assert {*on_held} == {key for key in found if key[1]}
    for method in ("sft", "mft"):
        own = training_spec(method, **shared, learning_rate=GRID[0])
        folder = tmp_path / method
        alone = train(base, rows, folder, own, eval_data=[rows], choose_on=held)
        assert found[method, GRID[0], 0] == alone.metrics["loss"].value
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        choosing = [json.loads(line)["choosing"] for line in lines if "choosing" in line]
        assert on_held[method, GRID[0], 0] == min(each["loss"][0] for each in choosing)
    assert record.spec["learning_rate"] is None
    assert record.spec["learning_rates"] == sorted(GRID)
    assert draw(out)


def test_the_rate_is_chosen_on_the_rows_apart_and_for_each_method() -> None:
    cells = frame(
        {
            ("ft", 0.0, 0): (9.0, 0.0),
            ("one", 1e-3, 0): (1.0, 5.0),
            ("one", 1e-3, 1): (1.0, 5.0),
            ("one", 1e-2, 0): (3.0, 1.0),
            ("one", 1e-2, 1): (3.0, 2.0),
            ("other", 1e-3, 0): (4.0, 2.0),
            ("other", 1e-2, 0): (2.0, 2.0),
            ("other", 1e-1, 0): (0.0, float("nan")),
        }
    )
    shown = chosen(cells)
    assert {*shown["metric"]} == {"loss"}
    taken = shown.groupby("method")["learning_rate"].unique().map(list).to_dict()
    assert taken == {"ft": [0.0], "one": [1e-2], "other": [1e-3]}
    assert [*shown[shown["method"] == "one"]["value"]] == [3.0, 3.0]
    plain = cells.drop(columns=["learning_rate"])
    assert chosen(plain) is plain
    with pytest.raises(RecordError, match="'accuracy' was not measured on choose_on; it has loss"):
        chosen(cells, "accuracy")


def test_a_better_accuracy_is_the_higher_one() -> None:
    cells = frame({("one", 1e-3, 0): (1.0, 0.5), ("one", 1e-2, 0): (3.0, 0.7)})
    cells["metric"] = cells["metric"].str.replace("loss", "exact_match")
    assert [*chosen(cells, "exact_match")["learning_rate"]] == [1e-2]


def test_only_rates_with_the_most_seeds_compete() -> None:
    cells = frame({("one", 1e-3, 0): (1, 5), ("one", 1e-3, 1): (1, 5), ("one", 1e-2, 0): (1, 0)})
    assert {*chosen(cells)["learning_rate"]} == {1e-3}


SWEEPS: list[tuple[Any, dict[str, Any]]] = [
    (compare, {"methods": "mft,lora-on-ft"}),
    (sweep_mask_ratio, {"methods": "gmt,hft", "mask_ratios": "0.5"}),
    (sweep_data_ratio, {"methods": "mft,sft", "data_ratios": "0.5,1"}),
    (sweep_layers, {"methods": "mft,l1-mask", "group_sizes": [1]}),
]


@pytest.mark.parametrize(("function", "axes"), SWEEPS, ids=[f.__name__ for f, _ in SWEEPS])
@pytest.mark.parametrize("turned", [False, True])
def test_a_grid_that_grew_equals_one_call(
    source: TrainingData,
    fake: FakeTraining,
    tmp_path: Path,
    function: Any,
    axes: dict[str, Any],
    turned: bool,
) -> None:
    def ask(out: str, rates: tuple[float, ...], seeds: int) -> None:
        run_study(
            function, source=source, out=tmp_path / out, seeds=seeds, learning_rates=rates, **axes
        )

    ask("whole", (1e-4, 1e-3, 1e-2), 2)
    calls = fake.calls
    parts = [((1e-2, 1e-3), 1), ((1e-4,), 2)]
    for rates, seeds in reversed(parts) if turned else parts:
        ask("s", rates, seeds)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert fake.calls == 2 * calls
    assert draw(tmp_path / "s")


def test_ratio_0_is_plain_tuning_at_each_rate(source: TrainingData, tmp_path: Path) -> None:
    axes: dict[str, Any] = {"mask_ratios": "0.5", "seeds": 1, "learning_rates": GRID}
    shared = {"steps": 2, "batch_size": 8}
    methods = "gmt,one-off-drop"
    cells = run_study(sweep_mask_ratio, methods, source, tmp_path / "s", shared, **axes).cells
    own = cells[cells["metric"] == "loss"].set_index(["method", "mask_ratio", "learning_rate"])
    losses = own["value"]
    for rate in GRID:
        assert losses["gmt", 0.0, rate] == losses["sft", 0.0, rate]
    assert losses["sft", 0.0, GRID[0]] != losses["sft", 0.0, GRID[1]]
    held = cells[(cells["metric"] == "loss@choose_on") & (cells["method"] == "one-off-drop")]
    apart = held.set_index(["mask_ratio", "learning_rate"])["value"]
    assert apart.nunique() == 4, "a drop is measured on the rows that choose, too"


def test_continued_lora_goes_on_at_its_own_rate(source: TrainingData, tmp_path: Path) -> None:
    axes: dict[str, Any] = {"base": source.model, "seeds": 1, "learning_rates": GRID}
    shared = {"steps": 2, "batch_size": 8, "lora_rank": 2}
    both = run_study(compare, "lora,lora-continued", source, tmp_path / "s", shared, **axes)
    alone = run_study(compare, "lora-continued", source, tmp_path / "alone", shared, **axes)
    mine, other = values(both, "loss"), values(alone, "loss")
    assert all(mine[key] == value for key, value in other.items())


def test_tables_sentences_and_numbers_have_the_chosen_rate_and_the_spread(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    record = run_study(compare, "mft,sft", source, tmp_path / "s", seeds=2, learning_rates=GRID)
    summary = summarize_sweep(record)
    table, rates = summary.tables()
    assert table.columns[:3] == ("method", "from", "learning rate")
    cells = chosen(record.cells)
    for method in ("mft", "sft"):
        own = cells[(cells["method"] == method) & (cells["metric"] == "loss")]
        (rate,) = {*own["learning_rate"]}
        (row,) = [row for row in table.rows if row[0] == method]
        assert row[2] == f"{rate:g}"
        assert row[-1].startswith(f"{own['value'].mean():.4f} ±")
        every = values(record, "loss")
        means = {r: (every[method, r, 0] + every[method, r, 1]) / 2 for r in GRID}
        (line,) = [row for row in rates.rows if row[0] == method]
        assert line[1:] == (
            *(f"{means[r]:.4f}" for r in sorted(GRID)),
            f"{rate:g}",
            f"{max(means.values()) - min(means.values()):.4f}",
        )
        found = summary.as_json()["learning_rates"]["loss"][method]
        assert found["chosen"] == rate
    text = " ".join(summary.sentences())
    assert "loss, worst minus best of 2 learning rates (lower is better): " in text
    assert "chosen at the end of the grid: mft, sft" in text or (
        "chosen at the end of the grid: sft, mft" in text
    ), "a grid of two rates has nothing but ends"
    assert rates.title == "loss at each learning rate"


def test_one_rate_is_a_study_as_before(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"train_data": source.data, "eval_data": source.eval_data, "seeds": 1}
    for name, rate in (("number", 1e-3), ("text", "1e-3"), ("list", [1e-3, 1e-3])):
        deltalens.compare("mft", source.model, out=tmp_path / name, learning_rate=rate, **given)
        assert files(tmp_path / name) == files(tmp_path / "number")
    record = load_study(tmp_path / "text")
    assert record.spec["learning_rate"] == 1e-3
    assert "learning_rates" not in record.spec
    assert "learning_rate" not in record.cells.columns


def test_a_study_at_one_rate_does_not_become_a_grid(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    run_study(compare, "mft", source, tmp_path / "s", seeds=1)
    with pytest.raises(RecordError, match=r"learning_rates: None in the folder, \[0\.001, 0\.02\]"):
        run_study(compare, "mft", source, tmp_path / "s", seeds=1, learning_rates=GRID)


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ("mft", ["--lr", "1e-3,1e-4"], "give --choose-on"),
        (
            "mft",
            ["--lr", "1e-3,0", "--choose-on", "HELD"],
            "1e-3,0: must be above 0",
        ),
        ("mft", ["--lr", "-1"], "must be above 0"),
        ("mft", ["--lr", "fast"], "--learning-rate 'fast': numbers, with commas"),
        ("mft", ["--lr", "1e-3,inf", "--choose-on", "HELD"], "must be above 0"),
        ("mft", ["--lr", "1e-3,1e-4", "--choose-on", "ROWS"], "flatters the method"),
        (
            "mft:score-learning-rate=0.1",
            ["--lr", "1e-3,1e-4", "--choose-on", "HELD"],
            "mft: score_learning_rate is varied by this study; give --learning-rate instead",
        ),
    ],
)
def test_a_grid_that_cannot_be(
    source: TrainingData, tmp_path: Path, methods: str, options: list[str], message: str
) -> None:
    files = {"HELD": source.choose_on, "ROWS": source.data}
    words = [files.get(word, word) for word in options]
    rows = ["--train-data", source.data, "--eval-data", source.data, "-o", tmp_path / "s"]
    result = command("compare", methods, source.model, *rows, *words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "s").exists()


def test_a_training_has_one_rate(source: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match=r"learning_rate 0.001,0.0001: a training has one"):
        deltalens.train(
            "sft", source.model, source.data, tmp_path / "o", learning_rate=[1e-3, 1e-4]
        )


def test_as_a_user_types_it(source: TrainingData, fake: FakeTraining, tmp_path: Path) -> None:
    rows = ["--train-data", source.data, "--eval-data", source.data, "--seeds", 1]
    words = [*rows, "--learning-rate", "5e-4,2e-4", "--choose-on", source.choose_on]
    planned = command("compare", "mft,sft", source.model, *words, "-o", tmp_path / "s", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "5" in planned.output
    assert not (tmp_path / "s").exists()
    done = command("compare", "mft,sft", source.model, *words, "-o", tmp_path / "s", "--json")
    assert done.exit_code == 0, done.output
    assert {*json.loads(done.stdout)["learning_rates"]["loss"]} == {"mft", "sft"}
