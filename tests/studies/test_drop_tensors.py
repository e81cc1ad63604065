"""Which tensors take part in a drop: rows, tied tensors, patterns, integers and buffers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deltalens
from tests.support.drops import NAMES, dropped, mixture, ordinary, same_checkpoint
from tests.support.oracles import order as oracle
from tests.support.oracles.order import SCOPES, STRATEGIES, Entry, Scope, Strategy
from tests.support.oracles.pairs import (
    make,
    read_checkpoint,
    same_bits,
)

pytestmark = [pytest.mark.property, pytest.mark.oracle]

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def embedding(rows: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return make("grid", rows * 4, dtype, seed).view(rows, 4)


def expected(
    ft: Mapping[str, Tensor], base: Mapping[str, Tensor], strategy: Strategy, rate: str
) -> dict[str, Tensor]:
    """What a drop per tensor gives where the base may have fewer rows."""
    put: set[Entry] = set()
    for name, tensor in base.items():
        flat = ft[name].reshape(-1)[: tensor.numel()]
        sizes = oracle.delta_magnitudes(flat, tensor.reshape(-1))
        put |= oracle.select({name: sizes}, strategy, rate)
    return mixture(ft, base, put)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_that_only_the_fine_tune_has_stay(strategy: Strategy, tmp_path: Path) -> None:
    ft = {EMBED: embedding(14, 0), "model.norm.weight": make("normal", 8, torch.bfloat16, 1)}
    base = {EMBED: embedding(11, 2), "model.norm.weight": make("normal", 8, torch.bfloat16, 3)}
    found, result = dropped(tmp_path, ft, base, strategy=strategy, rate="0.6")
    assert same_checkpoint(found, expected(ft, base, strategy, "0.6"))
    assert result.entries == 11 * 4 + 8
    assert same_bits(found[EMBED][11:], ft[EMBED][11:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_output_embedding_tied_in_the_base_only(strategy: Strategy, tmp_path: Path) -> None:
    ft = {EMBED: embedding(9, 0), HEAD: embedding(9, 5)}
    base = {EMBED: embedding(9, 2)}
    found, _ = dropped(tmp_path, ft, base, strategy=strategy, rate="0.4")
    both = {EMBED: base[EMBED], HEAD: base[EMBED]}
    assert same_checkpoint(found, expected(ft, both, strategy, "0.4"))


def test_an_output_embedding_tied_in_the_fine_tune_only(tmp_path: Path) -> None:
    ft, base = {EMBED: embedding(9, 0)}, {EMBED: embedding(9, 2), HEAD: embedding(9, 2)}
    found, result = dropped(tmp_path, ft, base, rate="0.4", ties=True)
    assert same_checkpoint(found, expected(ft, {EMBED: base[EMBED]}, "trivial", "0.4"))
    assert result.entries == 36


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_tied_tensor_stored_twice_counts_once(
    strategy: Strategy, scope: Scope, tmp_path: Path
) -> None:
    shared = embedding(9, 0)
    ft = {EMBED: shared, HEAD: shared.clone(), "z": make("normal", 20, torch.bfloat16, 4)}
    base = {EMBED: embedding(9, 2), "z": make("normal", 20, torch.bfloat16, 5)}
    spec: dict[str, Any] = {"strategy": strategy, "rate": "0.3", "scope": scope}
    found, result = dropped(tmp_path, ft, base, ties=True, **spec)
    sizes = {name: oracle.delta_magnitudes(ft[name], base[name]) for name in base}
    wanted = mixture(ft, base, oracle.select_in_scope(sizes, scope, strategy, "0.3"))
    assert same_checkpoint(found, wanted | {HEAD: wanted[EMBED]})
    assert result.entries == 9 * 4 + 20


def test_a_tied_tensor_stored_twice_with_more_rows(tmp_path: Path) -> None:
    shared = embedding(12, 0)
    ft, base = {EMBED: shared, HEAD: shared.clone()}, {EMBED: embedding(9, 2)}
    found, _ = dropped(tmp_path, ft, base, ties=True, rate="0.5")
    wanted = expected(ft, base, "trivial", "0.5")
    assert same_bits(found[EMBED], wanted[EMBED])
    assert same_bits(found[HEAD], wanted[EMBED])


def test_a_tied_tensor_stored_twice_and_left_out(tmp_path: Path) -> None:
    """Its name under which it counts takes no part: both stay as the fine-tune has them."""
    shared, other = embedding(9, 0), make("normal", 20, torch.bfloat16, 4)
    ft = {EMBED: shared, HEAD: shared.clone(), "z": other}
    base = {EMBED: embedding(9, 2), HEAD: embedding(9, 2), "z": other + 1}
    found, _ = dropped(tmp_path, ft, base, ties=True, rate="0.5", exclude="embed")
    assert same_bits(found[EMBED], shared)
    assert same_bits(found[HEAD], shared)


def test_an_output_embedding_that_only_the_configuration_ties(tmp_path: Path) -> None:
    """Stored beside the input embedding with other values, it is a tensor of its own."""
    ft = {EMBED: embedding(9, 0), HEAD: embedding(9, 7)}
    base = {EMBED: embedding(9, 2), HEAD: embedding(9, 3)}
    found, _ = dropped(tmp_path, ft, base, ties=True, rate="0")
    assert same_checkpoint(found, ft)


def test_include_and_exclude(tmp_path: Path) -> None:
    pair = ordinary()
    ft, base = pair.write(tmp_path)
    cases = [
        ({"include": r"layers\.0\."}, NAMES[:2]),
        ({"exclude": r"layers\.0\."}, NAMES[2:5]),
        ({"include": "layers", "exclude": r"q\.weight$"}, [NAMES[1]]),
    ]
    for at, (spec, names) in enumerate(cases):
        out = tmp_path / f"out{at}"
        result = deltalens.drop(ft, base, out, rate="0.5", scope="global", **spec)
        sizes = {name: pair.sizes[name] for name in names}
        put = oracle.select_in_scope(sizes, "global", "trivial", "0.5")
        assert same_checkpoint(read_checkpoint(out), mixture(pair.ft, pair.base, put))
        assert result.put_back == len(put) == 100 * len(names)


def test_integers_and_buffers_stay(tmp_path: Path) -> None:
    ft = {
        "w": make("normal", 30, torch.float32, 0),
        "ids": torch.arange(7),
        "h.0.attn.bias": torch.ones(4),
        "flags": torch.tensor([True, False]),
    }
    base = {
        "w": make("normal", 30, torch.float32, 1),
        "ids": torch.arange(7) + 1,
        "h.0.attn.bias": torch.zeros(4),
        "flags": torch.tensor([False, False]),
    }
    found, result = dropped(tmp_path, ft, base, rate="1")
    assert found.keys() == ft.keys()
    assert same_bits(found["w"], base["w"])
    assert all(torch.equal(found[name], ft[name]) for name in ft if name != "w")
    assert result.entries == 30
