"""Masks on disk, and checkpoints of masked models: what is read is what was trained, or nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from deltalens import DeltaLensError, MaskTuning, apply_masks
from deltalens.io.mask_file import read_masks
from deltalens.methods.weight_masks import WeightMasks, l1_weight_mask, random_weight_mask
from tests.support.masked_training import assert_same_bits
from tests.support.mft_models import (
    FAMILIES,
    batches,
    bits_of,
    llama,
    loss_of,
    named_scores,
    plain_bits,
)
from tests.support.oracles import mft
from tests.support.oracles.order import count_for, hashes

pytestmark = pytest.mark.oracle

FRESH = """
import sys, torch, transformers
from safetensors.torch import save_file
from deltalens import apply_masks
kind, model, masks, ids, out = sys.argv[1:]
load = getattr(transformers, kind).from_pretrained
merged = apply_masks(load(model).eval(), masks)
merged.save_pretrained(out)
plain = load(out).eval()
ids = torch.tensor([list(map(int, ids.split(",")))])
save_file({"merged": merged(ids).logits, "plain": plain(ids).logits}, out + "/logits.safetensors")
"""


def trained(model: Any, **spec: Any) -> MaskTuning:
    tuning = MaskTuning(model, **spec)
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    data = batches()
    for _ in range(3):
        loss_of(model, next(data)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuning


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_fresh_process_applies_saved_masks(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family](True)
    model.save_pretrained(tmp_path / "ft")
    tuning = trained(model, blocks="1", mask_ratio=0.3)
    tuning.save(tmp_path / "masks.safetensors")
    command = [sys.executable, "-c", FRESH, type(model).__name__]
    arguments = [tmp_path / "ft", tmp_path / "masks.safetensors", "3,1,4,1,5", tmp_path / "out"]
    subprocess.run([*command, *map(str, arguments)], check=True)
    logits = load_file(tmp_path / "out" / "logits.safetensors")
    model.eval()
    masked = model(torch.tensor([[3, 1, 4, 1, 5]])).logits
    for found in logits.values():
        assert torch.equal(found, masked)
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, mask in tuning.masks().items():
        weight = next(v for n, v in merged.items() if n.endswith(f"{name}.weight"))
        assert (weight[~mask] == 0).all(), name


def test_masks_take_a_bit_a_weight(tmp_path: Path) -> None:
    model = llama(layers=40)
    tuning = MaskTuning(model)
    tuning.save(tmp_path / "masks.safetensors")
    bits = sum(scores.numel() for scores in tuning.parameters())
    assert len(tuning.layers) == 280
    assert (tmp_path / "masks.safetensors").stat().st_size <= bits / 8 + 4096
    file = read_masks(tmp_path / "masks.safetensors")
    assert {one.name for one in file.masks} == set(tuning.layers)
    assert file.about["mask_ratio"] == {"attention": "0.1", "mlp": "0.1"}


def test_masks_of_fp32_weights_fit_the_same_weights_in_bf16(tmp_path: Path) -> None:
    half = llama(torch.bfloat16)
    tuning = trained(llama(torch.bfloat16).float(), mask_ratio=0.4)
    tuning.save(tmp_path / "masks.safetensors")
    start = bits_of(half)
    apply_masks(half, tmp_path / "masks.safetensors")
    for name, mask in tuning.masks().items():
        weight = half.get_submodule(name).weight.detach()
        assert torch.equal(weight, mft.masked(start[f"{name}.weight"], mask)), name


def test_masks_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    MaskTuning(llama()).save(path)
    other = llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    before = bits_of(other)
    with pytest.raises(
        DeltaLensError, match=r"other weights(.|\n)*layers\.1\.mlp\.up_proj"
    ) as info:
        apply_masks(other, path)
    assert "layers.0" not in str(info.value)
    shorter, bert = llama(layers=1), FAMILIES["bert"](True)
    with pytest.raises(
        DeltaLensError,
        match=r"layers\.1\.mlp\.up_proj: LlamaForCausalLM has no linear layer of this name",
    ):
        apply_masks(shorter, path)
    with pytest.raises(DeltaLensError, match=r"do not fit BertForMaskedLM"):
        apply_masks(bert, path)
    wide = FAMILIES["llama"](True)
    wide.model.layers[0].mlp.up_proj = torch.nn.Linear(16, 25, bias=False)
    with pytest.raises(
        DeltaLensError, match=r"up_proj: has shape \[25, 16\] in Llama.*\[24, 16\] in the"
    ):
        apply_masks(wide, path)
    assert_same_bits(bits_of(other), before)
    twice = llama()
    apply_masks(twice, path)
    with pytest.raises(DeltaLensError, match="already masked"):
        apply_masks(twice, path)


def test_files_that_hold_no_masks(tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="no such file"):
        apply_masks(llama(), tmp_path / "masks.safetensors")
    save_file({"kept": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(DeltaLensError, match="not a file of masks"):
        apply_masks(llama(), tmp_path / "other.safetensors")
    path = tmp_path / "masks.safetensors"
    MaskTuning(llama()).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(DeltaLensError, match="truncated"):
        apply_masks(llama(), path)
    path.write_bytes(whole.replace(b"[16,16]", b"[16,15]", 1))
    with pytest.raises(DeltaLensError, match="damaged: its checksum"):
        apply_masks(llama(), path)
    with pytest.raises(DeltaLensError, match="cannot be written"):
        MaskTuning(llama()).save(tmp_path / "no" / "such" / "masks.safetensors")


def test_a_checkpoint_of_a_masked_model_is_the_masked_model(tmp_path: Path) -> None:
    model = llama()
    tuning = trained(model)
    ids = next(batches())
    model.save_pretrained(tmp_path / "mid")
    plain = LlamaForCausalLM.from_pretrained(tmp_path / "mid")
    assert torch.equal(plain(ids).logits, model(ids).logits)
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "mid", dtype=torch.float32)
    tuning.merge()
    assert_same_bits(bits_of(auto), bits_of(model))


def test_scores_come_back_from_a_state_dict() -> None:
    model, other, ids = llama(), llama(), next(batches())
    trained(model)
    MaskTuning(other, seed=1)
    other(ids)
    assert not torch.equal(other(ids).logits, model(ids).logits)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids).logits, model(ids).logits)
    assert_same_bits(named_scores(other), named_scores(model))
    assert_same_bits(plain_bits(other), bits_of(llama()))
    # Weights alone are those of the model, masked or not.
    other.load_state_dict(llama().state_dict(), strict=False)


def test_scores_learned_on_other_weights_are_refused() -> None:
    model, other = llama(), llama()
    MaskTuning(model)
    with torch.no_grad():
        other.model.layers[1].self_attn.q_proj.weight += 1
    MaskTuning(other)
    with pytest.raises(
        DeltaLensError, match=r"layers\.1\.self_attn\.q_proj\.weight: the checkpoint"
    ):
        other.load_state_dict(model.state_dict())


UNTRAINED = {"random": random_weight_mask, "l1": l1_weight_mask}


@pytest.mark.parametrize("make", UNTRAINED.values(), ids=UNTRAINED)
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_without_training(tmp_path: Path, family: str, make: Any) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family](True)
    start = bits_of(model)
    model.save_pretrained(tmp_path / "ft")
    found: WeightMasks = make(model, blocks="1", mask_ratio={"attention": 0.35, "mlp": "0.1"})
    assert_same_bits(bits_of(model), start)
    masks = found.masks()
    for name, mask in masks.items():
        ratio = "0.35" if "att" in name else "0.1"
        weight = start[f"{name}.weight"]
        assert int((~mask).sum()) == count_for(ratio, mask.numel())
        if make is l1_weight_mask:
            assert torch.equal(mask, mft.mask_of(weight, f"{name}.weight", ratio=ratio)), name
        else:
            by_hash = torch.from_numpy(hashes(0, f"{name}.weight", mask.numel())).argsort()
            wanted = torch.zeros(mask.numel(), dtype=torch.bool)
            wanted[by_hash[: int(mask.sum())]] = True
            assert torch.equal(mask.flatten(), wanted), name
    assert set(found.mask_ratio_by_layer()) == set(masks)
    found.save(tmp_path / "masks.safetensors")
    found.merge()
    for name, value in bits_of(model).items():
        mask = masks.get(name.removesuffix(".weight"), torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, mft.masked(start[name], mask)), name
    again = type(model).from_pretrained(tmp_path / "ft")
    assert_same_bits(bits_of(apply_masks(again, tmp_path / "masks.safetensors")), bits_of(model))


def test_random_masks_depend_on_the_seed_and_ties_on_nothing_else() -> None:
    one, other = (random_weight_mask(llama(), seed=seed).masks() for seed in (0, 1))
    assert all(not torch.equal(one[name], other[name]) for name in one)
    tied = llama()
    with torch.no_grad():
        for parameter in tied.parameters():
            parameter.fill_(0.5)
    for mask in l1_weight_mask(tied, mask_ratio=0.5).masks().values():
        assert int(mask.sum()) == mask.numel() // 2
        assert (mask.float().mean(1) - 0.5).abs().max() < 0.5
