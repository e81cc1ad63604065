"""Adapters of all families: trained, saved, loaded, switched, merged, and read by peft."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import DeltaLensError, SparseAdapter, SparseAdapters, SparseTuning
from deltalens.errors import CheckpointError
from deltalens.methods.mask_layers import linear_layers
from tests.support.models import ids_of, initialized, tiny, tokenizer
from tests.support.sparse_models import Net, random_masks, same_model

FAMILIES = ["llama", "gpt2", "opt", "bert", "roberta", "qwen2", "gemma2"]
TRANSPOSED = ["gpt2"]


def family(name: str) -> Any:
    """A tiny model whose dropout is off."""
    return initialized(lambda: tiny(name, **ids_of(tokenizer())), seed=0)


def inputs(model: Any, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 30, (3, 12), generator=generator)
    return {"input_ids": ids, "labels": ids}


def block_layers(model: nn.Module) -> list[str]:
    return [layer.name for layer in linear_layers(model) if layer.block is not None]


def trained(model: Any, density: float = 0.05, seed: int = 0, steps: int = 3) -> SparseTuning:
    """A tuning of all linear layers of the blocks, after some steps."""
    tuning = SparseTuning(model, masks=random_masks(model, block_layers(model), density, seed))
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    for step in range(steps):
        model(**inputs(model, step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuning


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(**inputs(model, 99)).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_saves_loads_and_merges(name: str, tmp_path: Path) -> None:
    model, base = family(name), family(name)
    before = logits(model)
    tuning = trained(model)
    after = logits(model)
    assert not torch.equal(before, after)
    tuning.save(tmp_path / "adapter.safetensors")
    again = family(name)
    loaded = SparseTuning.load(tmp_path / "adapter.safetensors", again)
    assert torch.equal(logits(again), after)
    for own, other in zip(tuning.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(own, other)
    assert same_model(loaded.unmerge(), base)
    merged = tuning.merge()
    merged.save_pretrained(tmp_path / "merged")
    plain = type(merged).from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits(plain), after)


@pytest.mark.parametrize("name", [each for each in FAMILIES if each not in TRANSPOSED])
@pytest.mark.parametrize("density", [0.05, 0.3])
def test_an_adapter_in_the_form_of_shira_gives_the_same_logits_through_peft(
    name: str, density: float, tmp_path: Path
) -> None:
    import peft

    model = family(name)
    tuning = trained(model, density)
    after = logits(model)
    tuning.save(tmp_path / "shira", format="shira")
    wrapped = peft.PeftModel.from_pretrained(family(name), str(tmp_path / "shira")).eval()
    assert torch.equal(logits(wrapped), after)


def test_unequal_counts_are_filled_up_with_zeros_for_shira(tmp_path: Path) -> None:
    import peft

    model = family("llama")
    names = block_layers(model)
    masks = random_masks(model, names, 0.02)
    masks |= random_masks(model, names[:1], 0.5)
    tuning = SparseTuning(model, masks=masks)
    with torch.no_grad():
        for values in tuning.parameters():
            values.normal_()
    tuning.save(tmp_path / "shira", format="shira")
    wrapped = peft.PeftModel.from_pretrained(family("llama"), str(tmp_path / "shira")).eval()
    assert torch.equal(logits(wrapped), logits(model))


def test_shira_is_refused_where_its_rank_exceeds_a_layer(tmp_path: Path) -> None:
    model = family("llama")
    names = block_layers(model)
    wide = next(name for name in names if name.endswith("gate_proj"))
    masks = {wide: torch.ones(model.get_submodule(wide).weight.shape, dtype=torch.bool)}
    masks |= random_masks(model, [name for name in names if name.endswith("k_proj")], 0.1)
    tuning = SparseTuning(model, masks=masks)
    with pytest.raises(DeltaLensError, match=r"(?s)the fullest needs r = \d+.*k_proj"):
        tuning.save(tmp_path / "shira", format="shira")
    assert not (tmp_path / "shira").exists()


def test_shira_of_a_transposed_layer_is_refused(tmp_path: Path) -> None:
    tuning = trained(family("gpt2"))
    with pytest.raises(DeltaLensError, match=r"(?s)peft adapts nn.Linear only.*c_attn"):
        tuning.save(tmp_path / "shira", format="shira")


def test_an_adapter_of_pefts_shira_is_read(tmp_path: Path) -> None:
    import peft

    config = peft.ShiraConfig(r=2, target_modules=["q_proj", "down_proj"], init_weights=False)
    wrapped = peft.get_peft_model(family("llama"), config).eval()
    wrapped.save_pretrained(tmp_path / "theirs")
    model = family("llama")
    tuning = SparseTuning.load(tmp_path / "theirs", model)
    assert torch.equal(logits(model), logits(wrapped))
    assert same_model(tuning.unmerge(), family("llama"))


def test_an_adapter_of_super_tuning_is_read(tmp_path: Path) -> None:
    import peft

    config = peft.SupertuningConfig(
        sparsity=0.9, target_modules=["q_proj", "down_proj"], init_weights=False
    )
    wrapped = peft.get_peft_model(family("llama"), config).eval()
    wrapped.save_pretrained(tmp_path / "theirs")
    model = family("llama")
    SparseAdapter.read(tmp_path / "theirs", model).apply(model)
    torch.testing.assert_close(logits(model), logits(wrapped), rtol=0, atol=1e-6)


def test_another_kind_of_peft_adapter_is_refused(tmp_path: Path) -> None:
    import peft

    wrapped = peft.get_peft_model(family("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "lora")
    with pytest.raises(CheckpointError, match="an adapter of peft_type LORA; sparse ones"):
        SparseAdapter.read(tmp_path / "lora", family("llama"))


def test_several_adapters_of_one_base_are_switched_bit_for_bit(tmp_path: Path) -> None:
    expected, paths = {}, {}
    for seed, name in enumerate(("maths", "code")):
        model = family("llama")
        tuning = trained(model, seed=seed)
        expected[name], paths[name] = logits(model), tmp_path / f"{name}.safetensors"
        tuning.save(paths[name])
    model, base = family("llama"), family("llama")
    adapters = SparseAdapters(model, paths)
    for name in ("maths", "code", "maths", None, "code"):
        adapters.use(name)
        wanted = logits(base) if name is None else expected[name]
        assert torch.equal(logits(model), wanted)
        assert adapters.used == name
    adapters.use(None)
    assert same_model(model, base)
    with pytest.raises(DeltaLensError, match="law: no such adapter; there are maths, code"):
        adapters.use("law")


def test_an_adapter_is_small(tmp_path: Path) -> None:
    tuning = trained(family("llama"))
    tuning.save(tmp_path / "adapter.safetensors")
    content = tuning.budget.trained * (4 + 4)
    header = len(tuning.indices()) * 400 + 1000
    assert (tmp_path / "adapter.safetensors").stat().st_size < content + header


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    trained(family("llama")).save(tmp_path / "adapter.safetensors")
    other = initialized(lambda: tiny("llama", **ids_of(tokenizer())), seed=1)
    with pytest.raises(DeltaLensError, match=r"trained from another base than this LlamaForCausal"):
        SparseTuning.load(tmp_path / "adapter.safetensors", other)
    with pytest.raises(DeltaLensError, match=r"(?s)does not fit Net:.*no linear layer of"):
        SparseTuning.load(tmp_path / "adapter.safetensors", Net())
    wide = family("llama")
    tuning = trained(wide)
    with pytest.raises(DeltaLensError, match="is adapted already"):
        SparseAdapter.read(tmp_path / "adapter.safetensors", wide)
    tuning.unmerge()
    SparseAdapter.read(tmp_path / "adapter.safetensors", wide)


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    trained(family("llama")).save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: its checksum does not match"):
        SparseTuning.load(path, family("llama"))
    with pytest.raises(CheckpointError, match="no such file"):
        SparseTuning.load(tmp_path / "none", family("llama"))
    family("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="not a sparse adapter"):
        SparseTuning.load(tmp_path / "model" / "model.safetensors", family("llama"))


def test_a_model_that_is_adapted_already_is_refused() -> None:
    model = family("llama")
    trained(model)
    with pytest.raises(DeltaLensError, match="adapted already"):
        SparseTuning(model, masks=random_masks(model, block_layers(model), 0.1))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "there is none"),
        ({"third": torch.tensor([1])}, "third: Net has no linear layer of this name"),
        ({"first": torch.tensor([240])}, "first: chooses nothing, or beyond the weight's 240"),
        ({"first": torch.zeros(20, 12, dtype=torch.bool)}, "first: chooses nothing"),
        ({"first": torch.ones(12, 20, dtype=torch.bool)}, r"a mask of shape \[12, 20\] for"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: Any, message: str) -> None:
    net, base = Net(), None
    base = copy.deepcopy(net)
    with pytest.raises(DeltaLensError, match=message):
        SparseTuning(net, masks=masks)
    assert same_model(net, base)
    assert all(parameter.requires_grad for parameter in net.parameters())
