"""Which layers are masked, and what is asked of masks that cannot be: an error with the names."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import DeltaLensError, MaskTuning
from deltalens.methods.mask_layers import choose_layers
from tests.support import models
from tests.support.masked_training import assert_same_bits
from tests.support.mft_models import FAMILIES, bits_of, llama

ATTENTION = {
    "llama": "model.layers.1.self_attn.{q,k,v,o}_proj",
    "qwen2": "model.layers.1.self_attn.{q,k,v,o}_proj",
    "gpt2": "transformer.h.1.attn.{c_attn,c_proj}",
    "opt": "model.decoder.layers.1.self_attn.{q_proj,k_proj,v_proj,out_proj}",
    "bert": "bert.encoder.layer.1.attention.{self.query,self.key,self.value,output.dense}",
}
MLP = {
    "llama": "model.layers.1.mlp.{gate,up,down}_proj",
    "qwen2": "model.layers.1.mlp.{gate,up,down}_proj",
    "gpt2": "transformer.h.1.mlp.{c_fc,c_proj}",
    "opt": "model.decoder.layers.1.{fc1,fc2}",
    "bert": "bert.encoder.layer.1.{intermediate.dense,output.dense}",
}


def spread(pattern: str) -> list[str]:
    head, _, rest = pattern.partition("{")
    inside, _, tail = rest.partition("}")
    return sorted(head + one + tail for one in inside.split(","))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_of_a_block(family: str) -> None:
    model = FAMILIES[family](True)
    for kind, names in (("attention", ATTENTION), ("mlp", MLP)):
        found = choose_layers(model, [1], [kind])
        assert sorted(layer.name for layer in found) == spread(names[family])
    both = choose_layers(model)
    assert len(both) == 2 * len(choose_layers(model, "1"))


@pytest.mark.parametrize(
    ("blocks", "wanted"),
    [("all", "012345"), ("1-3", "123"), ("0,4-5", "045"), (" 2 , 2", "2"), ([5, 0], "05")],
)
def test_blocks(blocks: Any, wanted: str) -> None:
    found = choose_layers(llama(layers=6), blocks, ["mlp"])
    assert "".join(sorted({layer.name.split(".")[2] for layer in found})) == wanted


def test_layers_by_name() -> None:
    model = nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4)})
    tuning = MaskTuning(model, include="^up$", mask_ratio=0.5)
    assert tuning.mask_ratio_by_layer() == {"up": 0.5}


def test_fused_experts_stay_and_are_named() -> None:
    model = models.FAMILIES["mixtral"](True)
    with pytest.warns(UserWarning, match=r"not linear layers(.|\n)*experts"):
        tuning = MaskTuning(model)
    assert all("experts" not in name for name in tuning.layers)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such block": ({"blocks": "1-4"}, r"blocks 2, 3, 4: LlamaForCausalLM has only blocks 0-1"),
    "blocks as words": ({"blocks": "first"}, r"blocks='first': give 'all', numbers and ranges"),
    "blocks backwards": ({"blocks": "3-1"}, r"blocks='3-1'"),
    "negative block": ({"blocks": [-1]}, r"blocks=\[-1\]"),
    "no blocks": ({"blocks": []}, r"blocks=\[\]"),
    "one number": ({"blocks": 3}, r"blocks=3"),
    "no modules": ({"modules": ()}, "modules: none given"),
    "unknown modules": ({"modules": ["norm", "mlp"]}, "modules: norm: choose from attention, mlp"),
    "ratio 0": ({"mask_ratio": 0}, r"mask_ratio 0 .*outside \(0, 1\)"),
    "ratio 1": ({"mask_ratio": "1.0"}, r"mask_ratio 1.0 .*outside \(0, 1\)"),
    "ratio -1": ({"mask_ratio": -1}, r"mask_ratio -1 is outside"),
    "ratio NaN": ({"mask_ratio": math.nan}, r"'nan' is not a number"),
    "ratio of a word": ({"mask_ratio": "half"}, "'half' is not a number"),
    "ratio for norms": ({"mask_ratio": {"norm": 0.1}}, "mask_ratio for norm"),
    "ratio for one": (
        {"mask_ratio": {"mlp": 0.1}},
        "has the keys 'mlp', but attention, mlp layers are masked",
    ),
    "ratio and threshold": ({"mask_ratio": 0.1, "threshold": 0.0}, "give only one of the two"),
    "threshold NaN": ({"threshold": math.nan}, "threshold=nan"),
    "rank_by": ({"rank_by": "size"}, "rank_by='size': choose one of magnitude, value"),
    "init_std 0": ({"init_std": 0.0}, "init_std=0.0: must be above 0"),
    "init_std NaN": ({"init_std": math.nan}, "init_std=nan"),
    "include": ({"include": "("}, "not a valid regular expression"),
    "include nothing": ({"include": "query_proj"}, r"matches no linear layer(.|\n)*_proj"),
    "include and blocks": ({"include": "mlp", "blocks": "1"}, "replaces blocks and modules"),
    "tied head": ({"include": "lm_head"}, "lm_head: its weight is tied"),
}


@pytest.mark.parametrize(("spec", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(spec: dict[str, Any], message: str) -> None:
    model = llama()
    before = bits_of(model)
    with pytest.raises(DeltaLensError, match=message):
        MaskTuning(model, **spec)
    assert_same_bits(bits_of(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_blocks_is_told_to_name_layers() -> None:
    model = nn.ModuleDict({"up": nn.Linear(4, 6), "norm": nn.LayerNorm(6)})
    with pytest.raises(DeltaLensError, match=r"no linear layer in a block(.|\n)*include(.|\n)*up"):
        MaskTuning(model)


def test_layers_that_are_not_floats() -> None:
    model = llama()
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(
        DeltaLensError, match=r"layers\.1\.mlp\.up_proj: Linear of int8; is it quantized"
    ):
        MaskTuning(model)
    MaskTuning(model, modules="attention")


def test_layers_that_are_masked_already() -> None:
    model = llama()
    MaskTuning(model, blocks="0")
    with pytest.raises(DeltaLensError, match=r"layers\.0\.self_attn\.q_proj: is masked"):
        MaskTuning(model)


def test_wrapped_models() -> None:
    with pytest.raises(DeltaLensError, match="is wrapped or compiled already"):
        MaskTuning(torch.compile(llama()))  # type: ignore[arg-type]
    quantized: Any = llama()
    quantized.is_quantized = True
    with pytest.raises(DeltaLensError, match="is quantized"):
        MaskTuning(quantized)
    with torch.device("meta"):
        empty = llama()
    with pytest.raises(DeltaLensError, match="meta device"):
        MaskTuning(empty)


def test_a_mask_that_removes_a_whole_layer_is_reported() -> None:
    tuning = MaskTuning(llama(), threshold=1.0, blocks="1", modules="mlp")
    with pytest.warns(UserWarning, match=r"removes every weight of(.|\n)*layers\.1\.mlp\.up_proj"):
        assert set(tuning.mask_ratio_by_layer().values()) == {1.0}


def test_scores_that_were_rounded() -> None:
    model = llama()
    MaskTuning(model)
    model.bfloat16()
    with pytest.raises(
        DeltaLensError, match=r"q_proj\.weight were made as torch\.float32 but are torch\.bfloat16"
    ):
        model(torch.tensor([[1, 2]]))


def test_masks_that_are_gone() -> None:
    tuning = MaskTuning(llama())
    assert tuning.active
    tuning.merge()
    assert not tuning.active
    for ask in (tuning.masks, tuning.merge, tuning.parameters):
        with pytest.raises(DeltaLensError, match="the masks are gone"):
            ask()
