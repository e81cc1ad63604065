"""Rescaling the delta that stays rounds once."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deltalens
from tests.support.drops import SINGLES, Pair, check_drop, folder, mixture
from tests.support.oracles import order as oracle
from tests.support.oracles.order import FORMATS, STRATEGIES, Strategy
from tests.support.oracles.pairs import (
    make,
    read_checkpoint,
)
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]


def rescaled(ft: Tensor, base: Tensor, rate: str) -> list[set[int]]:
    """For each kept entry the bits of base + delta / (1 - rate), rounded once.

    The value is computed in fp64, so it may be off by a few of its last bits before it is rounded:
    where that matters, both neighbors are right.
    """
    form, allowed = FORMATS[ft.dtype], []
    for one, other in zip(oracle.raw_bits(ft), oracle.raw_bits(base), strict=True):
        w = oracle.number(other, FORMATS[base.dtype])
        delta = (oracle.number(one, form) - w) / (1 - Fraction(rate))
        slack = (abs(w) + abs(delta)) / 2**49
        allowed.append({oracle.nearest(w + delta + e, form) for e in (-slack, 0, slack)})
    return allowed


def check_rescale(pair: Pair, rate: str, strategy: Strategy) -> None:
    with folder() as place:
        ft, base = pair.write(place)
        deltalens.drop(ft, base, place / "out", strategy=strategy, rate=rate, rescale=True)
        written = read_checkpoint(place / "out")
    for name, tensor in written.items():
        put = oracle.select({name: pair.sizes[name]}, strategy, rate)
        plain = mixture({name: pair.ft[name]}, pair.base, put)[name]
        allowed = rescaled(pair.ft[name], pair.base[name], rate)
        zero = 1 << (FORMATS[tensor.dtype].bits - 1)
        bits = zip(oracle.raw_bits(tensor), oracle.raw_bits(plain), allowed, strict=True)
        for at, (found, dropped, kept) in enumerate(bits):
            if (name, at) in put:
                assert found == dropped
            else:
                assert found in kept or (found == zero and 0 in kept), (name, at)


@pytest.mark.parametrize("dtype", SINGLES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@repeatable(6)
@given(
    kinds=st.tuples(*[st.sampled_from(["grid", "normal", "sparse", "near", "subnormal"])] * 2),
    rate=st.sampled_from(["0.5", "0.1", "0.9", "0.75", "0.37"]),
    seed=st.integers(0, 1 << 16),
)
def test_rescale_rounds_once(
    dtype: torch.dtype, strategy: Strategy, kinds: tuple[str, str], rate: str, seed: int
) -> None:
    ft, base = ({"w": make(kind, 60, dtype, seed + at)} for at, kind in enumerate(kinds))
    pair = Pair(ft, base)
    if pair.differs:
        check_rescale(pair, rate, strategy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rescale_rounds_once_beside_the_middle_of_two_numbers(dtype: torch.dtype) -> None:
    """base + 2 (ft - base) = 1 + half a last place + 2^-30: up, not to even via fp32."""
    half = 2.0 ** -(FORMATS[dtype].fraction + 1)
    ft = {"w": torch.full((8,), 0.5, dtype=dtype)}
    base = {"w": torch.full((8,), -(half + 2.0**-30))}
    check_rescale(Pair(ft, base), "0.5", "trivial")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp64_base_is_cast_once(dtype: torch.dtype) -> None:
    half = 2.0 ** -(FORMATS[dtype].fraction + 1)
    ft = {"w": torch.full((8,), 0.5, dtype=dtype)}
    base = {"w": torch.full((8,), 1 + half + 2.0**-30, dtype=torch.float64)}
    check_drop(Pair(ft, base), ["0.5", "1"], "tensor", 0, False)


def test_a_tensor_of_which_nothing_is_put_back_is_rescaled_too() -> None:
    ft = {"w": torch.tensor([1.0]), "v": torch.linspace(1, 2, 10)}
    check_rescale(
        Pair(ft, {name: torch.zeros_like(t) for name, t in ft.items()}), "0.25", "trivial"
    )
