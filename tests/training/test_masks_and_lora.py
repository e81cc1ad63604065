"""`train mft`, its baselines and LoRA: plain checkpoints with masks beside them; chosen moments."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from deltalens import apply_masks, load_run
from deltalens.cli.main import app
from deltalens.errors import DeltaLensError, RecordError
from deltalens.figures import draw, draw_figure
from deltalens.training.run import TrainingWatch, train
from deltalens.training.spec import TrainingSpec
from tests.support.specs import training_spec
from tests.support.training_folders import write_model, write_rows

REMOVING = ("mft", "random-mask-weights", "l1-mask")


@pytest.fixture(scope="module")
def ft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("ft"))


def spec(method: str, **more: Any) -> TrainingSpec:
    given = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, **more}
    return training_spec(method, **given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", REMOVING)
def test_what_comes_out_is_the_model_without_some_weights(
    ft: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    own = spec(method, blocks="1", mask_ratio="attention=0.25,mlp=0.5")
    done = train(ft, rows, tmp_path / "out", own, eval_data=[rows])
    assert done.steps == (6 if method == "mft" else 0)
    before, after = weights(ft), weights(tmp_path / "out")
    for name, weight in before.items():
        chosen = ".layers.1." in name and name.endswith("_proj.weight")
        ratio = (0.25 if "self_attn" in name else 0.5) if chosen else 0.0
        removed = after[name] != weight
        assert int(removed.sum()) == round(ratio * weight.numel()), name
        assert not after[name][removed].any()
    assert done.masks == tmp_path / "out" / "masks.safetensors"
    model = AutoModelForCausalLM.from_pretrained(ft)
    masked = apply_masks(model, done.masks).state_dict()
    assert all(torch.equal(masked[name], after[name]) for name in after)


def test_a_threshold_instead_of_a_ratio(ft: Path, rows: Path, tmp_path: Path) -> None:
    train(ft, rows, tmp_path / "out", spec("mft", threshold=-0.02, learning_rate=1e-6))
    before, after = weights(ft), weights(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    removed = (before[name] != after[name]).float().mean().item()
    assert removed == pytest.approx(0.159, abs=0.03), "N(0, 0.02) below minus one deviation"
    facts = json.loads((tmp_path / "out" / "train.json").read_text())["facts"]
    gone = {n: int((before[n] != after[n]).sum()) for n in before if n.endswith("_proj.weight")}
    assert facts["removed"] == {
        n.removesuffix(".weight"): pytest.approx(count / before[n].numel())
        for n, count in gone.items()
    }
    assert len(set(facts["removed"].values())) > 1
    total = sum(before[n].numel() for n in gone)
    assert facts["removed_of_all"] == pytest.approx(sum(gone.values()) / total)


def test_the_learned_share_is_drawn(ft: Path, rows: Path, tmp_path: Path) -> None:
    """By the command that trained, by plot, and over the steps by monitor."""
    out = tmp_path / "out"
    options = ["--threshold", "-0.02", "--lr", "1e-2", "--steps", "12", "--probe", "--blocks", "1"]
    made = CliRunner().invoke(
        app,
        ["train", "mft", str(ft), "--train-data", str(rows), "-o", str(out), "--json", *options],
    )
    assert made.exit_code == 0, made.output
    picture = out / "removed_shares.png"
    assert json.loads(made.stdout)["pictures"] == [str(out / "training.png"), str(picture)]
    drawn = picture.read_bytes()
    picture.unlink()
    again = CliRunner().invoke(app, ["plot", str(out)])
    assert again.exit_code == 0, again.output
    assert picture.read_bytes() == drawn
    svg = (out / "removed_shares.svg").read_text()
    assert "self_attn.q_proj" in svg
    learned = load_run(out / "run").learned
    assert learned.groupby("layer")["kept"].nunique().max() > 1
    shown = CliRunner().invoke(app, ["monitor", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "removed weights (%)" in (out / "run" / "learned_masks.svg").read_text()


def test_a_method_without_steps_has_no_curves(ft: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["train", "l1-mask", str(ft), "--train-data", str(rows), "-o", str(out), "--json"]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["pictures"] == []


def test_a_training_that_removes_nothing_has_no_such_picture(
    ft: Path, rows: Path, tmp_path: Path
) -> None:
    train(ft, rows, tmp_path / "out", spec("sft"))
    assert {path.stem for path in draw(tmp_path / "out")} == {"training"}
    with pytest.raises(RecordError, match="removes no weights"):
        draw_figure("removed-shares", tmp_path / "out")


def test_lora_is_merged(ft: Path, rows: Path, tmp_path: Path) -> None:
    done = train(ft, rows, tmp_path / "out", spec("lora", lora_rank=2))
    before, after = weights(ft), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        moved = not torch.equal(weight, after[name])
        assert moved == name.endswith("_proj.weight"), name
        if moved:
            rank = torch.linalg.matrix_rank(after[name] - weight, atol=1e-5)
            assert int(rank) <= 2
    assert done.adapter == tmp_path / "out" / "adapter"
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ft), done.adapter)
    merged = adapted.merge_and_unload().state_dict()  # type: ignore[operator]
    assert all(torch.equal(merged[name], after[name]) for name in after)


@pytest.mark.parametrize("method", ["mft", "lora", "sft"])
def test_interrupted_it_goes_on_bit_for_bit(
    ft: Path, rows: Path, tmp_path: Path, method: str
) -> None:
    """With the choice of the best moment as well."""
    given: dict[str, Any] = {"choose_on": rows, "eval_every": 1}
    train(ft, rows, tmp_path / "straight", spec(method), **given)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    first = train(
        ft, rows, tmp_path / "out", spec(method), watch=TrainingWatch(at=interrupt), **given
    )
    assert not first.finished
    assert train(ft, rows, tmp_path / "out", spec(method), resume=True, **given).finished
    assert same(tmp_path / "straight", tmp_path / "out")
    facts = [
        json.loads((tmp_path / name / "train.json").read_text())["facts"]
        for name in ("straight", "out")
    ]
    assert facts[0]["chosen_step"] == facts[1]["chosen_step"]


def test_the_moment_with_the_least_loss_comes_out(ft: Path, rows: Path, tmp_path: Path) -> None:
    """On other rows than are learned, where training makes the loss worse at once."""
    others = write_rows(
        tmp_path / "others.jsonl", [{"prompt": "ab", "completion": "cd"} for _ in range(4)]
    )
    own = spec("sft", steps=8)
    done = train(
        ft, rows, tmp_path / "out", own, eval_data=[others], choose_on=others, eval_every=1
    )
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["choosing"]["loss"][0] for line in lines if "choosing" in line}
    assert list(losses) == [1, 2, 3, 4, 5, 6, 7, 8]
    best = min(losses, key=lambda step: losses[step])
    assert best < 8
    assert json.loads((tmp_path / "out" / "train.json").read_text())["facts"]["chosen_step"] == best
    assert done.metrics["loss"].value == pytest.approx(losses[best])


def test_the_probe_follows_the_masks(ft: Path, rows: Path, tmp_path: Path) -> None:
    done = train(ft, rows, tmp_path / "out", spec("mft", mask_ratio="0.5"), probe={"every": 1})
    assert done.run is not None
    learned = load_run(done.run).learned
    assert sorted(set(learned["step"])) == list(range(6))
    attention = [f"self_attn.{one}" for one in "qkvo"]
    parts = [*attention, "mlp.gate", "mlp.up", "mlp.down"]
    assert set(learned["layer"]) == {
        f"model.layers.{block}.{part}_proj" for block in (0, 1) for part in parts
    }
    assert (learned["kept"] == (learned["entries"] + 1) // 2).all()
    later = learned[learned["step"] > 0]
    both = (later["kept"] * 2 - later["flipped_previous"]) / 2
    expected = both / (2 * later["kept"] - both)
    assert later["jaccard_previous"].to_numpy() == pytest.approx(expected.to_numpy())
    assert (later["flipped_previous"] > 0).any()
    assert (later["flipped_previous"] % 2 == 0).all(), "as many come as go"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"blocks": "7"}, "blocks 7"),
        ({"mask_ratio": "0.1", "threshold": 0.0}, "give one of them"),
        ({"mask_ratio": "0"}, r"outside \(0, 1\)"),
        ({"mask_ratio": "attention=0.1"}, "mask_ratio has the keys 'attention'"),
        ({"mask_ratio": "0.1,9.q=0.2"}, "mask_ratio for 9.q: no masked layer"),
        ({"rank_by": "size"}, "rank_by='size'"),
        ({"init_std": 0.0}, "init_std"),
    ],
)
def test_masks_that_cannot_be(
    ft: Path, rows: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeltaLensError, match=message):
        train(ft, rows, tmp_path / "out", spec("mft", **more))
    assert not (tmp_path / "out").exists()
