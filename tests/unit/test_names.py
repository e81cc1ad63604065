"""Parameter names are read in one place: blocks, and what is ranked together."""

import pytest

from deltalens import DeltaLensError
from deltalens.names import (
    block_number,
    block_of,
    check_scope,
    in_block,
    stacks_of,
    unit_of,
)


@pytest.mark.parametrize(
    ("name", "block", "number"),
    [
        ("model.layers.7.mlp.up_proj.weight", "model.layers.7", 7),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", "encoder.block.0", 0),
        ("transformer.h.12", "transformer.h.12", None),
        ("model.norm.weight", "model.norm.weight", None),
        ("layers.².weight", "layers.².weight", None),
        ("layers.w1.weight", "layers.w1.weight", None),
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
    assert stacks_of(names) == {"encoder.block", "decoder.block"}


def test_a_scope_ranks_together_what_it_says() -> None:
    names = ("m.layers.0.a.weight", "m.layers.0.b.weight", "m.layers.1.a.weight", "m.embed.weight")
    for scope, units in (("tensor", 4), ("layer", 3), ("global", 1)):
        assert len({unit_of(name, check_scope(scope)) for name in names}) == units
    assert unit_of("m.embed.weight", "layer") == "m.embed.weight"


def test_a_scope_that_there_is_not() -> None:
    with pytest.raises(DeltaLensError, match="scope 'model': choose one of tensor, layer, global"):
        check_scope("model")
