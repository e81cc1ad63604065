"""The hash that orders entries which tie: the oracle's, a bijection, and fair."""

import math

import pytest
import torch

from deltalens.numerics.hashing import index_hash, name_key
from tests.support.cuts import Cut, cut
from tests.support.oracles import order as oracle
from tests.support.oracles.order import STRATEGIES, Strategy
from tests.support.selecting import entries, selections

pytestmark = [pytest.mark.property, pytest.mark.oracle]

SEEDED = [(0, "a"), (1, "a"), (0, "b"), (-3, "model.layers.0.mlp.up_proj.weight"), (2**70, "é\n")]


@pytest.mark.parametrize(("seed", "name"), SEEDED)
def test_the_hash_is_the_oracles(seed: int, name: str) -> None:
    assert name_key(seed, name) == oracle.signed(oracle.name_key(seed, name))
    starts = (0, 1 << 15, (1 << 31) - 300, 1 << 40, (1 << 63) - 600)
    indices = torch.cat([torch.arange(start, start + 599) for start in starts])
    wanted = [oracle.h64(seed, name, int(index)) for index in indices]
    assert index_hash(indices.clone(), name_key(seed, name)).tolist() == wanted
    with cut(Cut(hashed=100)):
        assert index_hash(indices.clone(), name_key(seed, name)).tolist() == wanted
    assert oracle.hashes(seed, name, 599).tolist() == wanted[:599]


@pytest.mark.parametrize(("seed", "name"), SEEDED)
def test_the_hash_is_a_bijection(seed: int, name: str) -> None:
    key = oracle.name_key(seed, name)
    hashed = index_hash(torch.arange(1 << 16), name_key(seed, name))
    assert hashed.unique().numel() == 1 << 16
    for index in range(0, 1 << 16, 97):
        assert oracle.unmix(key, int(hashed[index]) % (1 << 64)) == index


def test_the_hash_is_in_place_and_takes_nothing() -> None:
    indices = torch.arange(70_000)
    assert index_hash(indices, 5).data_ptr() == indices.data_ptr()
    assert index_hash(torch.arange(0), 5).numel() == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["w", "model.layers.3.self_attn.q_proj.weight", "lm_head.weight"])
def test_no_row_or_column_is_favored(strategy: Strategy, name: str) -> None:
    """64 x 1024 equal entries: the share of each row and column is near the rate.

    A sum of n squared standard normals is n on average, with deviation sqrt(2 n): seven deviations
    are far beyond chance and far below what any pattern in the rows would give.
    """
    rows, columns = 64, 1024
    unit = {name: torch.full((rows * columns,), 0.5, dtype=torch.bfloat16)}
    for seed, rate in ((0, 0.3), (1, 0.5), (2, 0.9)):
        chosen = selections(unit, strategy, [str(rate)], seed)[0]
        mask = chosen.mask(name, 0, unit[name]).view(rows, columns).double()
        assert int(mask.sum()) == round(rate * rows * columns)
        for axis, length in ((1, columns), (0, rows)):
            counts = mask.sum(axis)
            squares = (counts - rate * length).square() / (length * rate * (1 - rate))
            assert abs(float(squares.sum()) - len(counts)) < 7 * math.sqrt(2 * len(counts))
        # Neighbors are independent: their agreement is what chance gives.
        agree = float((mask[:, 1:] == mask[:, :-1]).double().mean())
        chance = rate**2 + (1 - rate) ** 2
        assert abs(agree - chance) < 7 * math.sqrt(chance * (1 - chance) / mask.numel())


def test_no_tensor_is_favored() -> None:
    unit = {f"layer.{at}.weight": torch.full((4000,), -1.0) for at in range(20)}
    for strategy in STRATEGIES:
        chosen = selections(unit, strategy, ["0.4"])[0]
        counts = [int(chosen.mask(name, 0, tensor).sum()) for name, tensor in unit.items()]
        assert sum(counts) == 32_000
        squares = sum((count - 1600) ** 2 / (4000 * 0.4 * 0.6) for count in counts)
        assert abs(squares - 20) < 7 * math.sqrt(40)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_names_and_seeds_give_other_orders(strategy: Strategy) -> None:
    values = torch.ones(2000)

    def took(name: str, seed: int) -> set[int]:
        chosen = selections({name: values}, strategy, ["0.5"], seed)[0]
        return {index for _, index in entries(chosen, {name: values})}

    drawn = [took(name, seed) for name in ("a", "b", "a.weight") for seed in (0, 1, 10)]
    for at, one in enumerate(drawn):
        for other in drawn[:at]:
            # 1000 of 2000 twice: 500 in common by chance, with deviation 11.
            assert 400 < len(one & other) < 600
    assert took("a", 0) == took("a", 0)
