"""`drop` writes bitwise the base where the oracle says so, bitwise the fine-tune elsewhere.

Pairs are written, and results read back, by the safetensors library.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deltalens
from deltalens.errors import DeltaLensError
from tests.support.drops import (
    NAMES,
    SINGLES,
    Pair,
    changed,
    check_drop,
    dealt,
    decimals,
    dropped,
    ordinary,
    pairs,
    same_checkpoint,
    small,
)
from tests.support.oracles.order import SCOPES, STRATEGIES, Scope, Strategy
from tests.support.oracles.pairs import (
    as_bits,
    make,
    read_checkpoint,
    same_bits,
)
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]


@changed
@pytest.mark.parametrize("scope", SCOPES)
@repeatable(7)
@given(pair=pairs(), rate=decimals, seed=st.integers(0, 2), chunk=st.integers(5, 30))
def test_drop_is_the_oracles(
    scope: Scope, changed_only: bool, pair: Pair, rate: str, seed: int, chunk: int
) -> None:
    with small(chunk):
        check_drop(pair, [rate], scope, seed, changed_only)


@pytest.mark.slow
@changed
@pytest.mark.parametrize("scope", SCOPES)
@repeatable(30)
@given(pair=pairs(most=150), rate=decimals, seed=st.integers(), chunk=st.integers(5, 300))
def test_drop_is_the_oracles_for_many_more_pairs(
    scope: Scope, changed_only: bool, pair: Pair, rate: str, seed: int, chunk: int
) -> None:
    with small(chunk, threads=2):
        check_drop(pair, [rate], scope, seed, changed_only)


@repeatable(6)
@given(pair=pairs([torch.float64], most=25), rate=decimals, scope=st.sampled_from(SCOPES))
def test_pairs_in_fp64(pair: Pair, rate: str, scope: Scope) -> None:
    check_drop(pair, [rate], scope, 0, False)


@pytest.mark.parametrize("ft_dtype", SINGLES)
@pytest.mark.parametrize("base_dtype", [*SINGLES, torch.float64])
def test_every_pair_of_dtypes(ft_dtype: torch.dtype, base_dtype: torch.dtype) -> None:
    names = ("model.layers.0.w", "model.layers.1.w", "head")
    ft = {name: make("normal", 30, ft_dtype, at) for at, name in enumerate(names)}
    base = {name: (t.double() * 1.0625 + 0.001).to(base_dtype) for name, t in ft.items()}
    check_drop(Pair(ft, base), ["0.3", "1"], "layer", 0, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_delta_is_computed_in_fp32(dtype: torch.dtype) -> None:
    """Rounded to the pair's own dtype most of these deltas would tie, and be ordered by hash."""
    ft = {"w": 1 + (make("normal", 300, torch.float32, 0) / 8).to(dtype)}
    base = {"w": (make("normal", 300, torch.float32, 1) / 64).to(dtype)}
    check_drop(Pair(ft, base), ["0.1", "0.5"], "tensor", 0, False)


# --- the ends, nesting, and what nothing depends on -----------------------------------------------
@pytest.mark.parametrize("dtype", SINGLES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rescale", [False, True])
def test_rate_0_is_the_fine_tune_and_rate_1_the_base_byte_for_byte(
    dtype: torch.dtype, strategy: Strategy, rescale: bool, tmp_path: Path
) -> None:
    ft, base = ordinary(dtype).write(tmp_path)
    for rate, side in (("0", ft), ("1", base), (0.0, ft), (1, base)):
        out = tmp_path / f"out-{rate}-{type(rate).__name__}"
        deltalens.drop(ft, base, out, strategy=strategy, rate=rate, rescale=rescale)
        files = sorted(side.glob("*.safetensors"))
        assert len(files) == 2
        for file in files:
            assert (out / file.name).read_bytes() == file.read_bytes()
        assert (out / "config.json").read_bytes() == (ft / "config.json").read_bytes()


def test_signs_of_zeros_are_put_back(tmp_path: Path) -> None:
    ft = {"w": torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0]).repeat(9)}
    base = {"w": torch.tensor([-0.0, 0.0, 0.0, -0.0, 2.0]).repeat(9)}
    pair = Pair(ft, base)
    check_drop(pair, ["0", "0.3", "0.5", "1"], "tensor", 0, False)
    check_drop(pair, ["0.5", "1"], "tensor", 0, True)
    paths = pair.write(tmp_path)
    deltalens.drop(*paths, tmp_path / "out", rate=1)
    assert same_bits(read_checkpoint(tmp_path / "out")["w"], base["w"])


@changed
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_drops_are_nested(
    strategy: Strategy, scope: Scope, changed_only: bool, tmp_path: Path
) -> None:
    pair = ordinary(n=90)
    ft, base = pair.write(tmp_path)
    differs = {name: as_bits(pair.ft[name]) != as_bits(pair.base[name]) for name in pair.ft}
    before = {name: torch.zeros_like(mask) for name, mask in differs.items()}
    for rate in ("0.1", "0.4", "0.41", "0.8", "1"):
        out = tmp_path / rate
        spec: dict[str, Any] = {"strategy": strategy, "rate": rate, "scope": scope}
        deltalens.drop(ft, base, out, changed_only=changed_only, **spec)
        for name, tensor in read_checkpoint(out).items():
            is_base = as_bits(tensor) == as_bits(pair.base[name])
            assert torch.equal(
                is_base | (as_bits(tensor) == as_bits(pair.ft[name])), is_base | True
            )
            now = is_base & differs[name]
            assert not (before[name] & ~now).any()
            before[name] = now


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_sharding_chunks_and_threads_change_no_byte(
    strategy: Strategy, scope: Scope, tmp_path: Path
) -> None:
    pair = ordinary(n=150)
    names = list(pair.ft)
    spec: dict[str, Any] = {"strategy": strategy, "scope": scope, "rate": "0.37", "seed": 4}
    results = []
    layouts = [(0, 0, 0), (1, 3, 2), (3, 5, 0)]
    for at, (rotate, of_ft, of_base) in enumerate(layouts):
        shuffled = names[rotate:] + names[:rotate]
        pair.where = {
            "ft": dealt(shuffled, of_ft, rotate),
            "base": dealt(shuffled[::-1], of_base, rotate),
        }
        place = tmp_path / str(at)
        ft, base = pair.write(place)
        deltalens.drop(ft, base, place / "out", **spec)
        results.append(read_checkpoint(place / "out"))
        for chunk, threads in ((1 << 18, 2), (31, 1), (64, 3)):
            with small(chunk, threads=threads):
                out = place / f"out{chunk}-{threads}"
                deltalens.drop(ft, base, out, **spec)
                results.append(read_checkpoint(out))
    assert all(same_checkpoint(results[0], other) for other in results[1:])
    assert not same_checkpoint(results[0], pair.ft)


def test_seeds_change_what_random_takes(tmp_path: Path) -> None:
    ft, base = ordinary().write(tmp_path)
    written = []
    for seed in (0, 1):
        out = tmp_path / f"out{seed}"
        deltalens.drop(ft, base, out, strategy="random", rate="0.5", seed=seed)
        written.append(read_checkpoint(out))
    assert not same_checkpoint(*written)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["ft", "base", "both"])
def test_what_is_not_finite_is_reported_by_name(
    strategy: Strategy, value: float, side: str, tmp_path: Path
) -> None:
    pair = ordinary()
    for where in ("ft", "base"):
        if side in (where, "both"):
            getattr(pair, where)[NAMES[2]][17] = value
    ft, base = pair.write(tmp_path)
    with small(40), pytest.raises(DeltaLensError, match=NAMES[2]) as caught:
        deltalens.drop(ft, base, tmp_path / "out", strategy=strategy)
    assert "17" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "ft"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_identical_models_are_refused(strategy: Strategy, tmp_path: Path) -> None:
    one = {"w": make("normal", 30, torch.float32, 0), "v": torch.tensor([0.0, -0.0])}
    other = {"w": one["w"].clone(), "v": torch.tensor([-0.0, -0.0])}
    with pytest.raises(DeltaLensError, match="no delta"):
        dropped(tmp_path, one, other, strategy=strategy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "spec",
    [{"rate": "1.1"}, {"rate": "x"}, {"strategy": "smallest"}, {"scope": "row"}, {"include": "("}],
)
def test_bad_settings_are_refused_before_any_work(spec: dict[str, str], tmp_path: Path) -> None:
    ft, base = ordinary().write(tmp_path)
    with pytest.raises(DeltaLensError):
        deltalens.drop(ft, base, tmp_path / "out", **spec)
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_was_asked(tmp_path: Path) -> None:
    ft, base = ordinary().write(tmp_path)
    deltalens.drop(ft, base, tmp_path / "out", strategy="random", rate=0.70, seed=3)
    record = json.loads((tmp_path / "out" / "deltalens.json").read_text())["drop"]
    assert (record["strategy"], record["rate"], record["seed"]) == ("random", "0.7", 3)
