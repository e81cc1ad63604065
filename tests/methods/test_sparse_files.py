"""Damaged and hostile files of sparse adapters: each is refused with one message."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltalens import DeltaLensError, SparseAdapter, SparseTuning
from deltalens.io.sparse_file import StoredEntries, write_sparse
from tests.support.models import tiny
from tests.support.sparse_models import same_model

pytestmark = pytest.mark.bad_input

NAME = "model.layers.0.self_attn.q_proj"
WEIGHTS, INDICES = (f"base_model.model.{NAME}.shira_{part}" for part in ("weight", "indices"))
FLAT, VALUES = torch.tensor([3, 9]), torch.ones(2)
SOUND = StoredEntries(f"{NAME}.weight", (16, 16), "", FLAT, VALUES)
FOLDED = replace(SOUND, folded_indices=torch.tensor([3, 5, 9]), folded_weights=torch.ones(3))


def llama() -> Any:
    torch.manual_seed(0)
    return tiny("llama", vocab_size=31)


@pytest.mark.parametrize("sound", [SOUND, FOLDED])
def test_a_sound_file_is_read(sound: StoredEntries, tmp_path: Path) -> None:
    write_sparse(tmp_path / "adapter.safetensors", [sound], {})
    model = llama()
    tuning = SparseTuning.load(tmp_path / "adapter.safetensors", model)
    assert tuning.budget.trained == 2
    assert same_model(tuning.unmerge(), llama())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "lists no weight, or one twice"),
        ([SOUND, SOUND], "lists no weight, or one twice"),
        ([replace(SOUND, digest="ab")], "trained from another base"),
        ([replace(SOUND, name="lm_head")], "no linear layer of this name"),
        ([replace(SOUND, shape=(16, 32))], r"shape \[16, 16\], in the file \[16, 32\]"),
        ([replace(SOUND, indices=FLAT.flip(0))], "not ascending inside shape"),
        ([replace(SOUND, indices=FLAT + 250)], "not ascending inside shape"),
        ([replace(SOUND, indices=FLAT - 9)], "not ascending inside shape"),
        ([replace(SOUND, indices=FLAT[:1])], "do not belong together"),
        ([replace(SOUND, indices=FLAT.float())], "do not belong together"),
        ([replace(SOUND, indices=FLAT.bool())], "do not belong together"),
        ([replace(SOUND, indices=FLAT.view(2, 1))], "do not belong together"),
        ([replace(SOUND, values=VALUES.int())], "do not belong together"),
        ([replace(SOUND, values=VALUES.to(torch.float8_e5m2))], "do not belong together"),
        ([replace(FOLDED, folded_weights=None)], "half of its entries are missing"),
        ([replace(FOLDED, indices=FLAT + 1)], "not among those of all masks"),
    ],
)
def test_a_file_that_describes_no_adapter_of_this_model_is_refused(
    weights: list[StoredEntries], message: str, tmp_path: Path
) -> None:
    write_sparse(tmp_path / "adapter.safetensors", weights, {})
    model = llama()
    with pytest.raises(DeltaLensError, match=message):
        SparseTuning.load(tmp_path / "adapter.safetensors", model)
    assert same_model(model, llama())
    assert all(parameter.requires_grad for parameter in model.parameters())


def write_shira(folder: Path) -> None:
    """An adapter of peft's own making."""
    import peft

    config = peft.ShiraConfig(r=1, target_modules=["q_proj"], init_weights=False)
    peft.get_peft_model(llama(), config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: {**t, INDICES: t[INDICES][:1]}, r"indices \[1, 32\] int32 do not belong"),
        (lambda t: {**t, INDICES: t[INDICES].repeat(2, 1)}, r"\[4, 32\] int32 do not belong"),
        (lambda t: {**t, INDICES: torch.tensor(3)}, r"indices \[\] int64 do not belong"),
        (lambda t: {**t, INDICES: t[INDICES].float()}, "float32 do not belong together"),
        (lambda t: {**t, WEIGHTS: t[WEIGHTS].view(1, -1)}, r"\[1, 32\] float32 and indices"),
        (lambda t: {**t, WEIGHTS: t[WEIGHTS].int()}, r"values \[32\] int32 and indices"),
        (lambda t: {**t, WEIGHTS: t[WEIGHTS] / 0}, "a value is not finite"),
        # Inside as a flat index, but in a column that the weight does not have.
        (lambda t: {**t, INDICES: torch.tensor([[0], [40]]).repeat(1, 32)}, r"not fit shape \[16"),
        (lambda t: {**t, INDICES: -1 - t[INDICES]}, r"do not fit shape \[16, 16\]"),
        (lambda t: {n: each for n, each in t.items() if n != INDICES}, "has no indices"),
        (lambda t: {n[5:]: each for n, each in t.items()}, "holds no SHIRA entries"),
        (lambda t: {**t, "lm_head.weight": t[WEIGHTS] + 0}, "has more than sparse entries"),
        (lambda t: {n.replace("q_proj", "x"): e for n, e in t.items()}, "no such linear layers"),
    ],
)
def test_a_shira_adapter_that_peft_would_not_write_is_refused(
    damage: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    write_shira(tmp_path / "shira")
    file = tmp_path / "shira" / "adapter_model.safetensors"
    save_file({name: t.contiguous() for name, t in damage(load_file(file)).items()}, file)
    with pytest.raises(DeltaLensError, match=message):
        SparseAdapter.read(tmp_path / "shira", llama())


@pytest.mark.parametrize(
    ("config", "message"),
    [("[1]", "not a JSON object"), ("{", "not valid JSON"), ("{}", "of peft_type None")],
)
def test_a_shira_folder_with_a_damaged_configuration_is_refused(
    config: str, message: str, tmp_path: Path
) -> None:
    write_shira(tmp_path / "shira")
    (tmp_path / "shira" / "adapter_config.json").write_text(config)
    with pytest.raises(DeltaLensError, match=message):
        SparseAdapter.read(tmp_path / "shira", llama())


def test_a_shira_adapter_for_a_model_that_is_adapted_already_is_refused(tmp_path: Path) -> None:
    write_shira(tmp_path / "shira")
    model = llama()
    SparseTuning(model, 0.1, metric="magnitude")
    with pytest.raises(DeltaLensError, match="is adapted already"):
        SparseAdapter.read(tmp_path / "shira", model)
