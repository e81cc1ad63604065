"""Parameter names are read in one place: blocks, kinds, choices, and what is ranked together."""

from __future__ import annotations

import pytest
import torch
import transformers

from deltalens import DeltaLensError
from deltalens.catalog.layers import layer_group
from deltalens.methods.baselines import frozen_half
from deltalens.methods.mask_layers import choose_layers
from deltalens.names import (
    NameFilter,
    block_number,
    block_of,
    block_stacks,
    check_scope,
    group_blocks,
    in_block,
    is_adapted_token_weight,
    is_label_head,
    kind_of,
    split_block,
    unit_of,
    unwrap_name,
)
from tests.support.models import FAMILIES


@pytest.mark.parametrize(
    ("name", "block", "number"),
    [
        ("model.layers.7.mlp.up_proj.weight", "model.layers.7", 7),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", "encoder.block.0", 0),
        ("transformer.h.12", "transformer.h.12", None),
        ("model.norm.weight", "model.norm.weight", None),
        ("layers.².weight", "layers.².weight", None),
        ("layers.w1.weight", "layers.w1.weight", None),
        ("layers.007.weight", "layers.007.weight", None),
        (f"layers.{'9' * 5000}.weight", f"layers.{'9' * 5000}.weight", None),
        ("", "", None),
    ],
)
def test_a_block_ends_at_the_first_number_of_a_name(
    name: str, block: str, number: int | None
) -> None:
    assert (block_of(name), block_number(name)) == (block, number)
    assert in_block(name) == (number is not None)


def test_stacks() -> None:
    names = ("encoder.block.0.x.weight", "encoder.block.1.x.weight", "decoder.block.0.x", "norm.w")
    assert block_stacks(names) == {"encoder.block", "decoder.block"}


def test_a_scope_ranks_together_what_it_says() -> None:
    names = ("m.layers.0.a.weight", "m.layers.0.b.weight", "m.layers.1.a.weight", "m.embed.weight")
    for scope, units in (("tensor", 4), ("layer", 3), ("global", 1)):
        assert len({unit_of(name, check_scope(scope)) for name in names}) == units
    assert unit_of("m.embed.weight", "layer") == "m.embed.weight"


def test_a_scope_that_there_is_not() -> None:
    with pytest.raises(DeltaLensError, match="scope 'model': choose one of tensor, layer, global"):
        check_scope("model")


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        ("model.layers.7.mlp.up_proj", ("model.layers", 7, "mlp.up_proj")),
        ("model.layers.7.mlp.experts.3.w1", ("model.layers", 7, "mlp.experts.3.w1")),
        ("transformer.h.12", ("transformer.h", 12, "")),
        ("0", ("", 0, "")),
        ("lm_head", ("lm_head", -1, "")),
    ],
)
def test_a_layer_is_split_around_the_number_of_its_block(
    layer: str, parts: tuple[str, int, str]
) -> None:
    assert split_block(layer) == parts


@pytest.mark.parametrize(
    ("blocks", "size", "groups"),
    [
        (range(4), 1, ["0", "1", "2", "3"]),
        (range(5), 2, ["0-1", "2-3", "4"]),
        (range(3), 3, ["0-2"]),
        ([2, 3, 7], 2, ["2-3", "7"]),
    ],
)
def test_groups(blocks: range, size: int, groups: list[str]) -> None:
    assert [str(group) for group in group_blocks(blocks, size, "m")] == groups


@pytest.mark.parametrize("size", [0, 5, -1])
def test_groups_that_cannot_be(size: int) -> None:
    with pytest.raises(DeltaLensError, match=f"groups of {size}: must be from 1 to 4, .* in m$"):
        group_blocks(range(4), size, "m")


KINDS = {
    "attention": (
        "model.layers.1.self_attn.q_proj.weight transformer.h.0.attn.c_proj.bias "
        "encoder.block.0.layer.0.SelfAttention.o.weight rwkv.blocks.0.att.key.weight "
        "decoder.block.3.layer.1.EncDecAttention.q.weight transformer.blocks.0.att_proj.weight "
        "bert.encoder.layer.1.attention.output.dense.weight model.layers.0.retention.q_proj.weight "
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    "mlp": (
        "model.layers.1.mlp.gate_proj.weight rwkv.blocks.0.feed_forward.key.weight "
        "encoder.block.0.layer.1.DenseReluDense.wi.weight model.decoder.layers.0.fc1.bias "
        "bert.encoder.layer.1.output.dense.weight model.layers.0.mlp.shared_expert_gate.weight"
    ),
    "expert": (
        "model.layers.0.block_sparse_moe.experts.3.w1.weight "
        "model.layers.0.mlp.experts.gate_up_proj model.layers.0.mlp.shared_experts.up_proj.weight "
        "encoder.block.1.layer.1.mlp.experts.expert_0.wi.weight"
    ),
    "norm": (
        "model.layers.0.self_attn.q_norm.weight transformer.ln_f.bias transformer.h.0.ln_attn.bias "
        "bert.encoder.layer.0.attention.output.LayerNorm.weight model.norm.weight "
        "encoder.block.0.layer.0.layer_norm.weight"
    ),
    "embedding": "transformer.wte.weight model.embed_tokens.weight model.audio_embed.0.weight",
    "head": "lm_head.weight score.weight classifier.out_proj.bias embed_out.weight lm_head.0.w",
    "other": "x.1.balance.weight model.layers.0.mixer.in_proj.weight model.flatten.weight",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_parameter_is_for_whatever_the_architecture_calls_it(kind: str) -> None:
    assert {name: kind_of(name) for name in KINDS[kind].split()} == dict.fromkeys(
        KINDS[kind].split(), kind
    )


def test_masks_half_freeze_and_figures_agree_on_the_attention_of_t5() -> None:
    config = transformers.T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    model = transformers.T5ForConditionalGeneration(config)
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    attention = {name for name in linear if "Attention" in name}
    assert len(attention) == 12  # q, k, v, o: of the encoder's block, and twice of the decoder's
    assert {layer.name for layer in choose_layers(model, "all", ["attention"])} == attention
    assert {name for name in linear if layer_group(f"{name}.weight") == "attention"} == attention
    dims = {name: one.dim() for name, one in model.named_parameters()}
    frozen = frozen_half(list(dims), dims, seed=0)
    halves = [stack for stack in ("encoder", "decoder") for _ in frozen_of(frozen, stack)]
    assert halves.count("encoder") == 2
    assert halves.count("decoder") == 4


def frozen_of(frozen: set[str], stack: str) -> list[str]:
    return [name for name in frozen if name.startswith(stack) and "Attention." in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_known_architecture_is_of_a_kind(family: str) -> None:
    names = [name for name, _ in FAMILIES[family](True).named_parameters()]
    assert [name for name in names if kind_of(name) == "other"] == []


def test_a_choice_takes_what_is_included_and_not_excluded() -> None:
    names = ("a.0.weight", "a.1.weight", "b.weight")
    assert [name for name in names if name in NameFilter("a", r"\.1\.")] == ["a.0.weight"]
    assert all(name in NameFilter() for name in names)
    assert NameFilter("^b").matches("a.0.weight", "b.weight")
    assert not NameFilter(None, "^b").matches("a.0.weight", "b.weight")


def test_a_choice_that_leaves_nothing_shows_the_nearest_names() -> None:
    names = ["layers.0.weight", "norm.weight"]
    assert NameFilter("layer.0.weigth").explain_no_match(names, "tensor") == (
        "include 'layer.0.weigth' matches no tensor; there are names such as layers.0.weight, "
        "norm.weight"
    )
    assert (
        NameFilter("x", "y")
        .explain_no_match(names, "tensor")
        .startswith("include 'x' and exclude 'y' leave no tensor; there are names such as ")
    )


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_choice_by_what_is_no_regular_expression(option: str) -> None:
    with pytest.raises(DeltaLensError, match=rf"{option}: '\(' is not a valid regular expression"):
        NameFilter(**{option: "("})


def test_wrappers_are_no_part_of_a_name() -> None:
    plain = "model.layers.0.mlp.up_proj.weight"
    assert unwrap_name(plain) == plain
    assert unwrap_name(f"_orig_mod.{plain}") == plain
    assert unwrap_name("model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight") == plain
    assert unwrap_name("m._orig_module.weight") == "m._orig_module.weight"


def test_what_an_adapter_brings_beside_its_matrices() -> None:
    assert is_label_head("base_model.model.score.weight")
    assert is_label_head("base_model.model.classifier.out_proj.weight")
    assert not is_label_head("base_model.model.scorer.weight")
    assert is_adapted_token_weight("base_model.model.lm_head.modules_to_save.default.weight")
    assert is_adapted_token_weight("base_model.model.model.embed_tokens.base_layer.weight")
    assert not is_adapted_token_weight("base_model.model.model.embed_tokens.lora_A.weight")
