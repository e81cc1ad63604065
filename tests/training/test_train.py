"""`deltalens train`: every method and format; resumed as if never stopped; errors before work."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalens import load_run
from deltalens.errors import DeltaLensError
from deltalens.training.recipe import read_recipe
from deltalens.training.run import Trained, TrainingWatch, train
from deltalens.training.spec import TrainingSpec
from tests.support.specs import training_spec
from tests.support.training_folders import preferences, write_rows


def spec(**more: Any) -> TrainingSpec:
    given = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, **more}
    return training_spec(**given)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return dict(found)


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def sft(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "out"
    train(base, rows, out, spec())
    return out


def test_what_comes_out_is_a_plain_checkpoint(base: Path, sft: Path) -> None:
    assert not same(base, sft)
    assert AutoTokenizer.from_pretrained(sft)("1+1=")["input_ids"]
    names = {file.name for file in sft.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "train.json"}
    assert "checkpoints" not in names
    record = json.loads((sft / "train.json").read_text())
    assert record["asked"]["learning_rate"] == 1e-2
    assert record["facts"]["steps"] == 6
    assert record["facts"]["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (sft / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_mask_ratio_0_is_plain_fine_tuning(
    base: Path, rows: Path, sft: Path, tmp_path: Path
) -> None:
    for method in ("gmt", "random-mask"):
        train(base, rows, tmp_path / method, spec(method=method, mask_ratio="0"))
        assert same(sft, tmp_path / method)


@pytest.mark.parametrize("method", ["gmt", "random-mask", "hft"])
def test_every_method_trains_something_of_its_own(
    base: Path, rows: Path, sft: Path, tmp_path: Path, method: str
) -> None:
    own = {} if method == "hft" else {"mask_ratio": "0.8"}
    train(base, rows, tmp_path / "out", spec(method=method, **own))
    assert not same(base, tmp_path / "out")
    assert not same(sft, tmp_path / "out")


@pytest.mark.parametrize("method", ["gmt", "random-mask"])
def test_updates_are_masked_on_request(base: Path, rows: Path, tmp_path: Path, method: str) -> None:
    """In one step, a share of the weights keep their bits: those outside the mask."""
    for apply_to in ("gradient", "update"):
        own = spec(method=method, mask_ratio="0.5", apply_to=apply_to, steps=1, weight_decay=0.1)
        train(base, rows, tmp_path / apply_to, own)
    before, after = weights(base), weights(tmp_path / "update")
    moved = weights(tmp_path / "gradient")
    name = "model.layers.0.mlp.up_proj.weight"
    kept = (before[name] == after[name]).float().mean().item()
    assert kept == pytest.approx(0.5, abs=0.01)
    assert (before[name] == moved[name]).float().mean().item() < 0.01


def test_an_interrupted_training_goes_on_bit_for_bit(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    own = spec(method="random-mask", mask_ratio="0.5")
    straight = train(base, rows, tmp_path / "straight", own, eval_data=[rows], eval_every=2)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "out"
    first = train(
        base, rows, out, own, eval_data=[rows], eval_every=2, watch=TrainingWatch(at=interrupt)
    )
    assert (first.finished, straight.finished) == (False, True)
    assert first.steps in (3, 4)
    assert not (out / "config.json").exists()
    second = train(base, rows, out, own, eval_data=[rows], eval_every=2, resume=True)
    assert second.finished
    assert same(tmp_path / "straight", out)
    assert (out / "metrics.jsonl").read_text() == (
        tmp_path / "straight" / "metrics.jsonl"
    ).read_text()
    with pytest.raises(DeltaLensError, match="finished"):
        train(base, rows, out, own, eval_data=[rows], eval_every=2, resume=True)


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(base: Path, rows: Path, tmp_path: Path) -> None:
    options = ["--train-data", str(rows), "--steps", "30", "--batch-size", "4", "--lr", "1e-2"]
    options += ["--checkpoint-every", "5", "--mask-ratio", "0.5"]
    command = [sys.executable, "-m", "deltalens.cli.main", "train", "gmt", str(base), *options]
    subprocess.run([*command, "-o", str(tmp_path / "straight")], check=True, capture_output=True)
    out = tmp_path / "out"
    killed = subprocess.Popen([*command, "-o", str(out)], stderr=subprocess.DEVNULL)
    while killed.poll() is None and not list(out.glob("checkpoints/*/deltalens-complete")):
        time.sleep(0.02)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    subprocess.run([*command, "--resume", "-o", str(out)], check=True, capture_output=True)
    assert same(tmp_path / "straight", out)


@pytest.mark.parametrize("bytes_left", [2_000, 100_000])
def test_a_full_disk_leaves_the_last_checkpoint(
    base: Path, rows: Path, sft: Path, tmp_path: Path, bytes_left: int
) -> None:
    """Files may not grow beyond a size from some step on: the weights, or only the optimizer's
    state, do not fit any more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done: int, total: int) -> None:
        if done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))

    out = tmp_path / "out"
    try:
        with pytest.raises(DeltaLensError, match="and resume: the last checkpoint is kept"):
            train(base, rows, out, spec(), checkpoint_every=2, watch=TrainingWatch(at=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (out / "config.json").exists()
    done = train(base, rows, out, spec(), checkpoint_every=2, resume=True)
    assert done.finished
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6
    assert same(sft, out)


def test_the_probe_logs_and_changes_nothing(
    base: Path, rows: Path, sft: Path, tmp_path: Path
) -> None:
    done = train(base, rows, tmp_path / "out", spec(), probe={"every": 2})
    assert done.run is not None
    assert sorted(set(load_run(done.run).tensors.step)) == [0, 2, 4]
    assert same(sft, tmp_path / "out")


FORMS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"{i}+1={i + 1}"} for i in range(20)],
    "renamed": [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(20)],
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_formats(base: Path, tmp_path: Path, form: str, suffix: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pd.DataFrame(FORMS[form]).to_parquet(file)
    else:
        write_rows(file, FORMS[form])
    fields = {"prompt": "question", "completion": "answer"} if form == "renamed" else {}
    done = train(base, file, tmp_path / "out", spec(steps=2), fields=fields)
    assert done.steps == 2
    assert done.loss > 0


def test_the_loss_is_on_the_completion_unless_asked(base: Path, rows: Path, tmp_path: Path) -> None:
    """The first step's loss is that of the untrained model on these tokens."""
    losses = {}
    for loss_on in ("completion", "all"):
        train(base, rows, tmp_path / loss_on, spec(loss_on=loss_on, steps=1, batch_size=40))
        line = json.loads((tmp_path / loss_on / "metrics.jsonl").read_text())
        losses[loss_on] = line["loss"]
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    sums = {"completion": [0.0, 0], "all": [0.0, 0]}
    for line in map(json.loads, rows.read_text().splitlines()):
        prompt = tokenizer(line["prompt"])["input_ids"]
        answer = tokenizer(line["completion"], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        with torch.no_grad():
            chances = model(ids).logits[0, :-1].log_softmax(-1)
        each = -chances.gather(1, ids[0, 1:, None])[:, 0]
        for name, begin in (("completion", len(prompt) - 1), ("all", 0)):
            sums[name][0] += float(each[begin:].sum())
            sums[name][1] += len(each[begin:])
    for name, (total, count) in sums.items():
        assert losses[name] == pytest.approx(total / count, rel=1e-3)


def test_dpo_with_masks(base: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "pairs.jsonl", preferences())
    own = spec(method="gmt", objective="dpo", mask_ratio="0.5", steps=3)
    done = train(base, file, tmp_path / "out", own)
    assert done.steps == 3
    assert not same(base, tmp_path / "out")


def test_measured_on_the_way_and_at_the_end(base: Path, rows: Path, tmp_path: Path) -> None:
    done: Trained = train(base, rows, tmp_path / "out", spec(), eval_data=[rows], eval_every=2)
    assert set(done.metrics) == {"exact_match", "loss", "perplexity"}
    lines = map(json.loads, (tmp_path / "out" / "metrics.jsonl").read_text().splitlines())
    measured = {line["step"]: line["evaluated"]["loss"][0] for line in lines if "evaluated" in line}
    assert list(measured) == [2, 4, 6]
    assert measured[6] == pytest.approx(done.metrics["loss"].value)


def recipe(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return file


def test_a_recipe_passes_trls_options_on(base: Path, rows: Path, tmp_path: Path) -> None:
    own = read_recipe(recipe(tmp_path, "max_grad_norm: 0.001\noptim: sgd\n"), "sft")
    train(base, rows, tmp_path / "out", spec(recipe=own, steps=2))
    before, after = weights(base), weights(tmp_path / "out")
    moved = sum(
        float((before[n] - after[n]).square().sum()) for n in before if n != "lm_head.weight"
    )
    assert 0 < moved**0.5 <= 2 * 1e-2 * 0.001 * 1.01


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "adapter"}, r"method 'adapter': choose one of sft, gmt"),
    "ratio": ({"method": "gmt", "mask_ratio": "1"}, r"mask ratio 1"),
    "outside": ({"method": "gmt", "mask_ratio": "1.5"}, r"1\.5 is outside"),
    "scope": ({"method": "gmt", "scope": "block"}, r"scope 'block'"),
    "steps": ({"steps": 0}, r"steps 0: must be above 0"),
    "apply_to": ({"method": "gmt", "apply_to": "weights"}, r"apply_to 'weights'"),
    "foreign": ({"scope": "layer"}, r"sft: has no setting scope; it has none of its own"),
    "foreign too": ({"method": "hft", "scope": "layer"}, r"hft: has no setting scope; .* include"),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_cannot_be(case: str) -> None:
    given, message = BAD[case]
    with pytest.raises(DeltaLensError, match=message):
        spec(**given)


LAUGHS = "beta: &a0 [x]\n" + "".join(
    f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
"""A dozen lines that unpack to 10^11 values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rates: 1", r"learning_rates: unknown; did you mean learning_rate\?"),
        ("bf16: true", r"bf16: give dtype instead"),
        ("output_dir: x", r"output_dir: give out instead"),
        ("- a", "mapping"),
        ("a: [", "not YAML"),
        (LAUGHS, ": unpacks to more than 10,000 values"),
        ("optim: &a [*a]\n", "optim: unpacks to more than 10,000 values, or 20 levels"),
        ("optim: " + "[" * 5_000, "not YAML: yaml says: RecursionError"),
        ("optim: !!python/object/apply:os.system [exit]\n", "not YAML: yaml says: Constr"),
        ("optim: 2026-13-45\n", "not YAML: yaml says: ValueError: month must be in 1..12"),
        ("optim: 2026-11-28\n", "optim: a date, where options are numbers"),
        ("optim: !!set {a}\n", "optim: a set, where"),
        ("? [a]\n: 1\n", "not YAML: yaml says: ConstructorError"),
        ("optim: \0\n", "not YAML: yaml says: ReaderError"),
        ("#" * (1 << 20) + "\n", "more than 1,048,576 bytes, too large for a recipe"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        read_recipe(recipe(tmp_path, text), "sft")


def test_bad_rows_are_named_before_anything_is_made(base: Path, tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "a"}, {"prompt": "b", "completion": 3}])
    with pytest.raises(DeltaLensError, match=r"(?s)line 1: 'completion' is missing.*line 2"):
        train(base, bad, tmp_path / "out", spec())
    pairs = write_rows(tmp_path / "pairs.jsonl", preferences())
    with pytest.raises(DeltaLensError, match="train with objective dpo"):
        train(base, pairs, tmp_path / "out", spec())
    texts = write_rows(tmp_path / "texts.jsonl", FORMS["text"])
    with pytest.raises(DeltaLensError, match="'rejected'"):
        train(base, texts, tmp_path / "out", spec(objective="dpo"))
    assert not (tmp_path / "out").exists()


def test_the_folder_holds_something_else(base: Path, rows: Path, sft: Path, tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="to resume it"):
        train(base, rows, sft, spec())
    with pytest.raises(DeltaLensError, match="no training to resume"):
        train(base, rows, tmp_path / "none", spec(), resume=True)
    with pytest.raises(DeltaLensError, match=r"learning_rate: 0\.01 in the folder, 0\.02 now"):
        train(base, rows, sft, spec(learning_rate=2e-2), resume=True)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DeltaLensError, match=r"mine\.txt|exists already"):
        train(base, rows, tmp_path, spec())
