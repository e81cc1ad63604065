"""The top of tensors that are ranked together is what a stable sort of their full keys says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalens.errors import DeltaLensError
from deltalens.numerics.selection import keep, keep_top
from tests.support.cuts import resized
from tests.support.oracles.order import hashes
from tests.support.oracles.pairs import KINDS, make
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Tensors = dict[str, torch.Tensor]


def wanted_top(tensors: Tensors, count: int, by_value: bool, seed: int, keep: bool) -> Tensors:
    """The last `count` of all entries in a stable sort by (value, hash, name)."""
    keys = []
    for name, values in tensors.items():
        sizes = values.double() if by_value else values.double().abs()
        # -0 and 0 are one value, and sort so.
        for index, (size, hashed) in enumerate(
            zip(sizes.tolist(), hashes(seed, name, values.numel()).tolist(), strict=True)
        ):
            keys.append((size + 0.0, hashed, name, index))
    top = sorted(keys)[len(keys) - count :]
    if keep and top:
        top = [key for key in keys if key[0] >= top[0][0]]
    masks = {name: torch.zeros(len(values), dtype=torch.bool) for name, values in tensors.items()}
    for _, _, name, index in top:
        masks[name][index] = True
    return masks


@pytest.fixture(params=["compiled", "in torch"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the work is done: on an accelerator it is done in torch."""
    if request.param == "in torch":
        monkeypatch.setattr(keep.KeepVisit, "mark_compiled", keep.KeepVisit.mark_in_torch)
    return str(request.param)


@pytest.mark.usefixtures("place")
@repeatable(150)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(0, 300),
    share=st.sampled_from([0.0, 0.004, 0.1, 0.5, 0.93, 1.0]),
    infinities=st.integers(0, 3),
    by_value=st.booleans(),
    keep_ties=st.booleans(),
    seed=st.integers(0, 3),
)
def test_the_top_is_what_a_stable_sort_says(
    kinds: list[str],
    dtype: torch.dtype,
    size: int,
    share: float,
    infinities: int,
    by_value: bool,
    keep_ties: bool,
    seed: int,
) -> None:
    tensors = {
        f"layer.{index}": make(kind, size + 7 * index, dtype, seed + index)
        for index, kind in enumerate(kinds)
    }
    for values in tensors.values():
        values[:infinities] = math.inf
        values[infinities : 2 * infinities] = -math.inf
    total = sum(values.numel() for values in tensors.values())
    count = round(share * total)
    ties = "keep" if keep_ties else "hash"
    with resized(tensor_sample=16):
        found = keep_top(tensors, count, by_value=by_value, seed=seed, ties=ties)
    wanted = wanted_top(tensors, count, by_value, seed, keep_ties)
    assert found.keys() == wanted.keys()
    for name, mask in found.items():
        assert torch.equal(mask.unpacked(), wanted[name]), name
    kept = sum(int(mask.count()) for mask in found.values())
    assert kept >= count if keep_ties else kept == count


def test_no_tensor_is_favored_among_ties() -> None:
    tensors = {name: torch.ones(5000) for name in "ab"}
    kept = {name: int(mask.count()) for name, mask in keep_top(tensors, 2000).items()}
    assert sum(kept.values()) == 2000
    assert abs(kept["a"] - 1000) < 120


def test_a_nan_is_reported_by_name() -> None:
    tensors = {"fine": torch.ones(9), "broken": torch.tensor([1.0, math.nan])}
    for count in (0, 3, 11):
        with pytest.raises(DeltaLensError, match="broken: holds NaN"):
            keep_top(tensors, count, by_value=True)


def test_more_than_there_is() -> None:
    with pytest.raises(IndexError, match="3 of 2 entries"):
        keep_top({"a": torch.ones(2)}, 3)
