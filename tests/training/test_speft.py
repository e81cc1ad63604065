"""`train speft`: what comes out, what it says, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from deltalens import SparseAdapter, load_run
from deltalens.cli.main import app
from deltalens.errors import DeltaLensError
from deltalens.training.methods import method_of
from deltalens.training.run import train
from deltalens.training.spec import TrainingSpec
from tests.support.specs import training_spec
from tests.support.training_folders import write_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base"))


def spec(**more: Any) -> TrainingSpec:
    given = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "density": "0.1", **more}
    return training_spec("speft", **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def facts(folder: Path) -> Any:
    return json.loads((folder / "train.json").read_text())["facts"]


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_what_comes_out_is_an_ordinary_checkpoint_with_few_changed_entries(
    base: Path, rows: Path, tmp_path: Path, scope: str
) -> None:
    out = tmp_path / "out"
    done = train(base, rows, out, spec(scope=scope), eval_data=[rows])
    before, after = weights(base), weights(out)
    changed = {name: int((after[name] != before[name]).sum()) for name in before}
    told = facts(out)
    assert 0 < sum(changed.values()) <= told["trained"]
    assert sum(changed.values()) > 0.9 * told["trained"]
    assert all("self_attn" in name for name, count in changed.items() if count)
    adapted = [name for name in before if "self_attn" in name]
    size = sum(before[name].numel() for name in adapted)
    if scope == "global":
        assert told["trained"] == round(size / 10)
    assert told["trained_of_model"] == pytest.approx(
        told["trained"]
        / sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters())
    )
    assert told["salience_seconds"] > 0
    assert any("entries trained" in note for note in done.notes)


def test_the_adapter_beside_the_model_is_what_was_trained(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    done = train(base, rows, tmp_path / "out", spec())
    assert done.adapter == tmp_path / "out" / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base)
    SparseAdapter.read(done.adapter / "adapter.safetensors", model).apply(model)
    wanted = weights(tmp_path / "out")
    assert all(torch.equal(each, wanted[name]) for name, each in model.state_dict().items())


def test_fewer_rows_than_the_salience_wants_are_used_and_said(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    done = train(base, rows, tmp_path / "out", spec(), limit=10)
    assert any("only 3 of 256 calibration batches" in note for note in done.notes)


def test_masks_are_renewed_during_the_training_and_the_probe_sees_it(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train(base, rows, out, spec(steps=6, refresh_every=3, scope="tensor"), probe={"every": 1})
    run = load_run(out / "run")
    logged = run.tensors
    assert set(logged["tensor"]) == {name for name in weights(base) if "self_attn" in name}
    assert (logged["entries"] == logged.groupby("tensor")["entries"].transform("first")).all()
    assert facts(out)["trained"] == logged[logged["step"] == 0]["entries"].sum()


def test_the_best_checkpoint_of_renewed_masks_is_kept(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"choose_on": rows, "eval_every": 1, "eval_data": [rows]}
    done = train(base, rows, out, spec(steps=5, refresh_every=2, learning_rate=0.3), **options)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = {one["step"]: one["choosing"]["loss"][0] for one in lines if "choosing" in one}
    best = min(losses, key=lambda step: losses[step])
    assert facts(out)["chosen_step"] == best
    assert done.metrics["loss"].value == pytest.approx(losses[best], rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_dtype_of_the_weights_is_kept(base: Path, rows: Path, tmp_path: Path, dtype: str) -> None:
    train(base, rows, tmp_path / "out", spec(), dtype=dtype)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype


def test_rows_with_labels_train_a_new_head_whole(tmp_path: Path) -> None:
    model = write_model(tmp_path / "base")
    rows = tmp_path / "rows.jsonl"
    lines = [{"sentence": f"{n}+{n}", "label": n % 2} for n in range(12)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = train(model, rows, tmp_path / "out", spec(), eval_data=[rows])
    assert "accuracy" in done.metrics
    assert any("new head: score.weight" in note for note in done.notes)
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    changed = sum(
        int((each != before[name]).sum())
        for name, each in trained.state_dict().items()
        if name in before
    )
    assert 0 < changed <= facts(tmp_path / "out")["trained"]
    # The adapter holds the head, too: on the base's other weights it is the trained model.
    again = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    assert done.adapter is not None
    SparseAdapter.read(done.adapter / "adapter.safetensors", again).apply(again)
    wanted = trained.state_dict()
    assert all(torch.equal(each, wanted[name]) for name, each in again.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": "0.1", "like_lora": 2}, "density, of_model and like_lora: give one of them"),
        ({"density": "0"}, "density 0.0: must be above 0"),
        ({"density": "1.2"}, r"density 1.2 is outside \[0, 1\]"),
        ({"like_lora": -1}, "like_lora -1: must be above 0"),
        ({"metric": "size"}, "metric 'size': choose one of magnitude, gradient"),
        ({"scope": "block"}, "scope"),
        ({"expectation": "between"}, "expectation 'between': choose one of inside, outside"),
        ({"refresh_every": 0}, "refresh_every 0: must be above 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        method_of("speft", **settings)


def test_a_share_of_the_model_is_given_in_percent() -> None:
    assert method_of("speft", of_model="0.35%") == method_of("speft", of_model="0.0035")


def test_preferences_have_no_loss_to_rank_by(base: Path, tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    pair = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    rows.write_text((json.dumps(pair) + "\n") * 8)
    with pytest.raises(DeltaLensError, match="dpo: the loss of preferences cannot be ranked by"):
        train(base, rows, tmp_path / "out", spec(objective="dpo"))
    assert not (tmp_path / "out").exists()
    assert train(base, rows, tmp_path / "free", spec(objective="dpo", metric="magnitude")).finished


def test_the_command_says_how_many_entries_train(base: Path, rows: Path, tmp_path: Path) -> None:
    words = ["train", "speft", base, "--train-data", rows, "-o", tmp_path / "out"]
    options = ["--steps", 2, "--like-lora", 1, "--metric", "magnitude"]
    result = CliRunner().invoke(app, [str(word) for word in (*words, *options)])
    assert result.exit_code == 0, result.output
    assert "entries trained" in result.output
    assert "of the model" in result.output
