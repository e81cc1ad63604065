"""PiSSA beside LoRA: the sum is what counts, and the adapter belongs to the base itself."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from deltalens.cli.main import app
from deltalens.errors import DeltaLensError
from deltalens.training.lora import adapted, target_layers
from deltalens.training.methods import method_of, read_methods
from deltalens.training.pissa import pissa_adapted, save_for_base
from deltalens.training.run import TrainingWatch, train
from deltalens.training.spec import TrainingSpec
from tests.support.models import tiny
from tests.support.specs import NO_ROWS, training_spec

SMALL: dict[str, Any] = {"lora_rank": 4, "targets": "attention"}


def spec(method: str = "pissa", **more: Any) -> TrainingSpec:
    given = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, **SMALL, **more}
    return training_spec(method, **given)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 27).reshape(2, 12) % model.config.vocab_size
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def moved(adapter: Any) -> None:
    """Change every adapter as a training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.oracle
def test_it_is_the_adapter_and_the_residual_that_plain_peft_makes(base: Path) -> None:
    ours, begun, notes = pissa_adapted(load(base), 4, 4, 0.0, "attention", seed=7)
    torch.manual_seed(7)
    names, _ = target_layers(load(base), "attention")
    config = LoraConfig(
        r=4,
        lora_alpha=4,
        init_lora_weights="pissa_niter_4",  # type: ignore[arg-type]
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(load(base), config)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert len(begun) == 2 * len(names)
    assert not notes
    torch.testing.assert_close(logits(ours), logits(load(base)), atol=1e-5, rtol=1e-5)
    for model in (ours, theirs):
        moved(model)
    together = logits(ours)
    assert torch.equal(logits(ours.merge_and_unload()), logits(theirs.merge_and_unload()))
    torch.testing.assert_close(logits(ours), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_what_is_saved_loads_on_the_base_as_a_lora_of_twice_the_rank(
    architecture: str, tmp_path: Path
) -> None:
    """GPT-2 keeps its weights the other way round. peft's own conversion is the twin."""

    def make() -> Any:
        torch.manual_seed(0)
        return tiny(architecture).eval()

    adapter, begun, _ = pissa_adapted(make(), 3, 6, 0.0, "linear", seed=0)
    adapter.save_pretrained(str(tmp_path / "begun"))
    moved(adapter)
    wanted = logits(adapter.eval())
    assert (wanted - logits(make())).abs().max() > 1e-2
    save_for_base(adapter, begun, tmp_path / "ours")
    adapter.save_pretrained(
        str(tmp_path / "peft"), path_initial_model_for_weight_conversion=str(tmp_path / "begun")
    )
    file = "adapter_model.safetensors"
    ours, theirs = (load_file(tmp_path / name / file) for name in ("ours", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (6, 12, True)
    loaded = PeftModel.from_pretrained(make(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(logits(loaded), wanted, atol=1e-4, rtol=1e-4)


def test_a_training_writes_the_sum_and_an_adapter_of_the_base(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    done = train(base, rows, tmp_path / "out", spec(), eval_data=[rows])
    before, after = load(base).state_dict(), load(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        near = torch.allclose(weight, after[name], atol=1e-6)
        assert near == (".self_attn." not in name), name
    assert done.adapter is not None
    adapter = PeftModel.from_pretrained(load(base), str(done.adapter)).eval()
    torch.testing.assert_close(
        logits(adapter), logits(load(tmp_path / "out")), atol=1e-4, rtol=1e-4
    )


def test_interrupted_it_goes_on_bit_for_bit(base: Path, rows: Path, tmp_path: Path) -> None:
    """The base is decomposed again, to the same residual; with the choice of a checkpoint, too."""
    given: dict[str, Any] = {"choose_on": rows, "eval_every": 1}
    train(base, rows, tmp_path / "straight", spec(), **given)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    first = train(base, rows, tmp_path / "out", spec(), watch=TrainingWatch(at=interrupt), **given)
    assert not first.finished
    torch.manual_seed(99)
    assert train(base, rows, tmp_path / "out", spec(), resume=True, **given).finished
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        straight, resumed = (load_file(tmp_path / name / file) for name in ("straight", "out"))
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight), file


def test_the_seed_alone_decides_the_residual(base: Path) -> None:
    states = []
    for globally in (5, 6):
        torch.manual_seed(globally)
        states.append(pissa_adapted(load(base), 2, 2, 0.0, "attention", seed=1)[0].state_dict())
    one, other = states
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["lora", "pissa"])
@pytest.mark.parametrize(
    ("targets", "endings"),
    [
        ("linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("q_proj,mlp.up_proj", {"q_proj", "up_proj"}),
    ],
)
def test_both_adapt_the_same_layers(
    base: Path, method: str, targets: str, endings: set[str]
) -> None:
    ready = method_of(method, lora_rank=2, targets=targets).prepare(load(base), 0, NO_ROWS)
    trained = [name for name, each in ready.model.named_parameters() if each.requires_grad]
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in trained} == endings


@pytest.mark.parametrize("targets", ["q_prj", "q_proj,,", "proj"])
def test_a_target_that_names_no_layer_is_refused_with_those_that_exist(
    base: Path, targets: str
) -> None:
    with pytest.raises(DeltaLensError, match=r"targets .*no such layers in Llama.*q_proj, k_proj"):
        adapted(load(base), 2, 2, 0.0, targets)


def test_alpha_can_be_the_rank() -> None:
    (lora,) = read_methods("lora:lora-rank=8:lora-alpha=rank")
    assert lora.alpha == 8  # type: ignore[attr-defined]
    (pissa,) = read_methods("pissa:lora-rank=8:lora-alpha=32")
    assert pissa.alpha == 32  # type: ignore[attr-defined]
    assert lora.settings(None)["lora_alpha"] == "rank"
    with pytest.raises(DeltaLensError, match="lora_alpha 'twice': a number, or rank"):
        method_of("lora", lora_alpha="twice")
    with pytest.raises(DeltaLensError, match="lora_alpha 0: must be above 0"):
        method_of("pissa", lora_alpha=0)


def test_a_record_from_before_there_were_targets_is_of_the_same_training() -> None:
    recorded = {"lora_rank": 64, "lora_alpha": 16, "lora_dropout": 0.1}
    assert method_of("lora").settings(None) == recorded


def test_preferences_have_no_reference_in_a_residual() -> None:
    with pytest.raises(DeltaLensError, match="pissa: under dpo the reference is the model without"):
        spec(objective="dpo")


def test_as_a_user_types_it(base: Path, rows: Path, tmp_path: Path) -> None:
    words = ["--lora-rank", "2", "--lora-alpha", "rank", "--targets", "q_proj", "--steps", "1"]
    files = ["--train-data", str(rows), "-o", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, ["train", "pissa", str(base), *files, *words])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["adapter"] == str(tmp_path / "out" / "adapter")
