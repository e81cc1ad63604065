"""`--recipe mft-paper`: MFT's settings as printed and as its code has them, beneath those given."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deltalens import load_study
from deltalens.api.translate import training
from deltalens.cli.main import app
from deltalens.errors import DeltaLensError
from deltalens.training.methods.plain import Sft
from deltalens.training.paper import paper_settings
from deltalens.training.spec import TrainingSpec
from tests.support.training_folders import write_model, write_rows

# Of the paper: section 5.1 (epochs, rates), Tables 1 and 2 (10 %, four blocks of each domain).
PRINTED = [
    ("llama2-7b", "maths", 2e-5, "4-7"),
    ("llama2-7b", "code", 2e-5, "20-23"),
    ("llama2-7b", "instructions", 2e-5, "0-3"),
    ("llama3.1-8b", "maths", 5e-6, "24-27"),
    ("llama3.1-8b", "code", 5e-6, "20-23"),
    ("llama3.1-8b", "instructions", 5e-6, "24-27"),
]


def settled(name: str, method: str = "mft", **options: Any) -> tuple[Any, TrainingSpec]:
    """The method and the shared settings, as commands settle them."""
    (found,), spec = training(method, {"recipe": name, **options})
    return found, spec


@pytest.mark.parametrize(("model", "domain", "rate", "blocks"), PRINTED)
def test_what_is_printed(model: str, domain: str, rate: float, blocks: str) -> None:
    method, found = settled(f"mft-paper:{model}:{domain}")
    assert (found.learning_rate, method.blocks, method.mask_ratio) == (rate, blocks, "0.1")
    assert method.peak_learning_rate(found.learning_rate) == rate
    assert found.epochs == 2
    assert found.batch_size * found.accumulate == 128
    assert (found.warmup, found.weight_decay) == (0.03, 0.0)
    assert found.recipe["lr_scheduler_type"] == "linear"
    assert found.recipe["max_grad_norm"] == 0


def test_what_is_given_stays(tmp_path: Path) -> None:
    (config := tmp_path / "trl.yaml").write_text("optim: sgd\n")
    recipe = "mft-paper:llama2-7b:code"
    method, found = settled(recipe, "mft:blocks=1", learning_rate=1e-2, config=config)
    assert (found.learning_rate, method.blocks, found.epochs) == (1e-2, "1", 2)
    assert found.recipe["optim"] == "sgd"
    assert found.recipe["lr_scheduler_type"] == "linear"
    assert settled("mft-paper", "mft:threshold=-0.035")[0].mask_ratio is None
    assert settled(recipe, "mft:include=mlp")[0].blocks == "all"
    assert settled(recipe, "sft")[0] == Sft()


@pytest.mark.parametrize(
    ("name", "methods", "message"),
    [
        ("mft", ["mft"], "recipe 'mft': mft-paper, or mft-paper:MODEL"),
        ("mft-paper:gpt", ["mft"], "llama2-7b or llama3.1-8b"),
        ("mft-paper:llama2-7b:law", ["mft"], "'law': choose maths, code, instructions"),
        ("mft-paper", ["mft", "gmt"], "says nothing about gmt"),
    ],
)
def test_recipes_that_cannot_be(name: str, methods: list[str], message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        paper_settings(name, methods)


def test_a_training_follows_it(tmp_path: Path) -> None:
    """The schedule falls on a line to 0, as transformers logs it; the rows are seen twice."""
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    data = ["--train-data", str(rows), "-o", str(tmp_path / "out"), "-q"]
    more = ["--recipe", "mft-paper", "--accumulate", "1"]
    done = CliRunner().invoke(app, ["train", "mft", str(model), *data, *more])
    assert done.exit_code == 0, done.output
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert len(rates) == 10
    # Three per cent of ten steps are no step of warm-up.
    assert rates == pytest.approx([2e-5 * (10 - step) / 10 for step in range(10)])
    spec = json.loads((tmp_path / "out" / "train.json").read_text())["asked"]
    assert (spec["epochs"], spec["mask_ratio"], spec["blocks"]) == (2.0, "0.1", "all")


def test_a_comparison_follows_it(tmp_path: Path) -> None:
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    command = ["compare", "mft:blocks=0,l1-mask", str(model), "-o", str(tmp_path / "study"), "-q"]
    data = ["--train-data", str(rows), "--eval-data", str(rows)]
    more = ["--recipe", "mft-paper", "--seeds", "1", "--steps", "1"]
    done = CliRunner().invoke(app, [*command, *data, *more])
    assert done.exit_code == 0, done.output
    record = load_study(tmp_path / "study")
    assert record.setting("mask_ratio", "l1-mask") == record.setting("mask_ratio", "mft") == "0.1"
    assert record.setting("blocks", "mft") == "0"
    assert record.spec["epochs"] == 2
    assert record.spec["recipe"]["lr_scheduler_type"] == "linear"


def test_a_training_takes_the_recipes_blocks_unless_others_are_given(tmp_path: Path) -> None:
    """The paper's four blocks of instructions, of a model that has fewer."""
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    line = ["train", "mft", str(model), "--train-data", str(rows), "--steps", "1", "-q"]
    line += ["--recipe", "mft-paper:llama2-7b:instructions", "--accumulate", "1"]
    done = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "no")])
    assert done.exit_code == 2
    assert "blocks 2, 3: LlamaForCausalLM has only blocks 0-1" in done.stderr
    done = CliRunner().invoke(app, [*line, "--blocks", "0", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "train.json").read_text())["asked"]["blocks"] == "0"
