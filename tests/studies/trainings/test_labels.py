"""Studies on rows with labels, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from deltalens import load_study
from deltalens.cli.main import app
from tests.support.models import bert, initialized, llama, save
from tests.support.training_folders import comparisons, write_rows

MEASURED = {"accuracy", "f1", "cross_entropy"}
STEPS = ["--steps", "2", "--batch-size", "4", "--lr", "1e-2"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without a head over sequences."""
    return save(initialized(lambda: bert(False), 0), tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama without a head over sequences."""
    return save(initialized(lambda: llama(False), 0), tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of rows to train and to evaluate on."""
    folder = tmp_path_factory.mktemp("rows")
    train = write_rows(folder / "train.jsonl", comparisons(24, names=True))
    test = write_rows(folder / "test.jsonl", comparisons(40, names=True)[24:])
    return ["--train-data", str(train), "--eval-data", str(test)]


def typed(*words: Any) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_two_methods_are_compared(encoder: Path, rows: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    line = ["compare", "sft,lora-on-ft", encoder, *rows, *STEPS, "--seeds", "2", "-o", out]
    said = typed(*line)
    assert "accuracy, best first: " in said
    record = load_study(out)
    assert record.spec["objective"] == "classification"
    assert record.spec["labels"] == ["less", "more"]
    cells = record.cells
    assert {*cells["method"]} == {"ft", "sft", "lora-on-ft"}
    assert {*cells["metric"]} == {*MEASURED, "training_loss"}
    assert cells[cells["metric"] == "accuracy"]["n"].tolist() == [16] * 5
    assert len({*cells[cells["metric"] == "cross_entropy"]["value"]}) == 5
    assert record.facts["units"] == {"training_loss": "cross-entropy, nats per row"}
    notes = " ".join(record.facts["notes"])
    assert "measured as it is, with a new head" in notes
    assert "drawn from the training's seed" in notes
    table = (out / "cells.csv").read_bytes()
    typed(*line)
    assert (out / "cells.csv").read_bytes() == table


def test_a_fine_tuned_classifier_is_dropped_back_to_its_base(
    decoder: Path, rows: list[str], tmp_path: Path
) -> None:
    """The head is in the fine-tune only, and stays; the base has none, which a note says."""
    ft, out = tmp_path / "ft", tmp_path / "study"
    typed("train", "sft", decoder, *rows, *STEPS, "-o", ft)
    drop = ["--rates", "0,0.5", "--strategies", "trivial", "--data", rows[3]]
    typed("drop-study", ft, decoder, *drop, "-o", out)
    record = load_study(out)
    trained = json.loads((ft / "metrics.jsonl").read_text().splitlines()[-1])["evaluated"]
    cells = record.cells.set_index(["strategy", "rate", "metric"])["value"]
    assert {*record.cells["metric"]} == MEASURED
    assert cells["trivial", 0.0, "cross_entropy"] == pytest.approx(trained["cross_entropy"][0])
    notes = " ".join(record.facts["notes"])
    assert "in the fine-tune only, left as it is: score.weight" in notes
    assert "LlamaForCausalLM has no head for the labels of test" in notes


def test_a_one_off_drop_keeps_the_new_head(decoder: Path, rows: list[str], tmp_path: Path) -> None:
    out = tmp_path / "study"
    sweep = ["sweep", "mask-ratio", "gmt,one-off-drop", decoder, "--mask-ratios", "0.5"]
    typed(*sweep, *rows, *STEPS, "--seeds", "1", "--keep-checkpoints", "-o", out)
    record = load_study(out)
    assert {*record.cells["metric"]} == {*MEASURED, "training_loss"}
    kept = {
        name: AutoModelForSequenceClassification.from_pretrained(out / "checkpoints" / name)
        for name in ("sft-0-0", "one-off-drop-0.5-0")
    }
    heads = [model.score.weight for model in kept.values()]
    assert heads[0].equal(heads[1])


def test_a_part_of_the_rows_has_the_classes_of_all(encoder: Path, tmp_path: Path) -> None:
    """Of three classes the first half of the rows has two, and so have the rows to evaluate on."""
    labels = [n * 3 // 24 for n in range(24)]
    train = [{"sentence": str(n), "label": label} for n, label in enumerate(labels)]
    files = [
        write_rows(tmp_path / f"{name}.jsonl", some)
        for name, some in (("train", train), ("test", train[:12]))
    ]
    out = tmp_path / "study"
    sweep = ["sweep", "data-ratio", "gmt", encoder, "--data-ratios", "0.5,1", "--seeds", "1"]
    data = ["--train-data", files[0], "--eval-data", files[1], "--keep-checkpoints"]
    typed(*sweep, *data, *STEPS, "-o", out)
    configs = (out / "checkpoints").glob("gmt-*/config.json")
    classes = [len(json.loads(config.read_text())["id2label"]) for config in configs]
    assert classes == [3, 3]


@pytest.mark.bad_input
def test_a_method_that_trains_nothing_is_refused_before_the_first_cell(
    encoder: Path, rows: list[str], tmp_path: Path
) -> None:
    line = ["compare", "sft,l1-mask", encoder, *rows, *STEPS, "-o", tmp_path / "study"]
    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 2
    assert "l1-mask: trains nothing" in " ".join(done.stderr.split())
    assert not (tmp_path / "study" / "cells.jsonl").exists()
