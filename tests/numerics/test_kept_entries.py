"""Which entries stay: as a stable sort of the full keys says, whatever the numbers are."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalens.errors import DeltaLensError
from deltalens.numerics.bits import TASK
from deltalens.numerics.hashing import name_key
from deltalens.numerics.selection import keep, keep_above, keep_highest, windows
from tests.support.cuts import resized
from tests.support.oracles import mft
from tests.support.oracles.order import count_for
from tests.support.oracles.pairs import KINDS, make
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def kept(values: torch.Tensor, ratio: str, rank_by: str, seed: int = 0) -> torch.Tensor:
    removed = count_for(ratio, values.numel())
    by_value = rank_by == "value"
    found = keep_highest(values, removed, name_key(seed, "w"), by_value=by_value).mask
    assert int(found.count()) == values.numel() - removed
    return found.unpacked()


@pytest.fixture(params=["compiled", "in torch"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the work is done: on an accelerator it is done in torch."""
    if request.param == "in torch":
        monkeypatch.setattr(keep.KeepVisit, "mark_compiled", keep.KeepVisit.mark_in_torch)
    return str(request.param)


@pytest.mark.usefixtures("place")
@repeatable(100)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(0, 700),
    ratio=st.sampled_from(["0.001", "0.1", "0.25", "0.5", "0.9", "0.999"]),
    rank_by=st.sampled_from(["magnitude", "value"]),
    seed=st.integers(0, 3),
)
def test_the_lowest_go_as_a_stable_sort_says(
    kind: str, dtype: torch.dtype, size: int, ratio: str, rank_by: str, seed: int
) -> None:
    values = make(kind, size, dtype, seed)
    wanted = mft.mask_of(values, "w", ratio=ratio, rank_by=rank_by, seed=seed)
    assert torch.equal(kept(values, ratio, rank_by, seed), wanted)


@pytest.fixture
def trusting() -> Iterator[None]:
    """Where the boundary was is looked at first, however much lies there."""
    with resized(crowded=math.inf):
        yield


@pytest.mark.usefixtures("place", "trusting")
@repeatable(100)
@given(
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(1, 700),
    ratios=st.tuples(st.sampled_from(["0.1", "0.9"]), st.sampled_from(["0.1", "0.12", "0.5"])),
    by_value=st.booleans(),
)
def test_where_to_look_first_changes_nothing(
    kinds: tuple[str, str], dtype: torch.dtype, size: int, ratios: tuple[str, str], by_value: bool
) -> None:
    near = None
    for kind, ratio in zip(kinds * 2, ratios * 2, strict=True):
        values, removed = make(kind, size, dtype, 0), count_for(ratio, size)
        found, _, near = keep_highest(values, removed, 5, by_value=by_value, near=near)
        again = keep_highest(values, removed, 5, by_value=by_value).mask
        assert torch.equal(found.bytes, again.bytes)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("by_value", [False, True])
def test_values_that_hardly_change_are_sampled_once(
    by_value: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []
    guess = windows.guess_window
    monkeypatch.setattr(windows, "guess_window", lambda *args: samples.append(args) or guess(*args))
    values, near = make("normal", 1 << 16, torch.float32, 0), None
    for _ in range(20):
        _, _, near = keep_highest(values, 6000, 5, by_value=by_value, near=near)
        values *= 1.0001
    assert len(samples) == 1


@pytest.mark.usefixtures("place")
@repeatable(60)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(0, 300),
    threshold=st.sampled_from([-0.035, 0.0, -0.0, 1 / 64, -0.375, 1.0, -1e30]),
)
def test_a_threshold_keeps_what_is_greater(
    kind: str, dtype: torch.dtype, size: int, threshold: float
) -> None:
    values = make(kind, size, dtype, size)
    wanted = mft.mask_of(values, "w", threshold=threshold)
    assert torch.equal(keep_above(values, threshold).unpacked(), wanted)


@pytest.mark.parametrize("rank_by", ["magnitude", "value"])
@pytest.mark.parametrize("ratio", ["0.1", "0.5", "0.97"])
@pytest.mark.parametrize("kind", ["normal", "grid", "equal", "sparse", "any"])
def test_several_threads_and_parts_find_the_same(kind: str, ratio: str, rank_by: str) -> None:
    torch.set_num_threads(2)
    values = make(kind, 2 * TASK + 70_007, torch.float32, 1)
    wanted = mft.mask_of(values, "w", ratio=ratio, rank_by=rank_by)
    assert torch.equal(kept(values, ratio, rank_by), wanted)


@pytest.mark.parametrize("rank_by", ["magnitude", "value"])
def test_a_sample_that_misleads_is_noticed(rank_by: str) -> None:
    # What is sampled, every fourth entry, has other sizes than the rest.
    values = make("normal", 1 << 16, torch.float32, 0)
    values[::4] = make("normal", 1 << 14, torch.float32, 1) / 1000
    wanted = mft.mask_of(values, "w", ratio="0.5", rank_by=rank_by)
    assert torch.equal(kept(values, "0.5", rank_by), wanted)


def test_more_ties_than_the_sample_shows() -> None:
    values = make("normal", 1 << 16, torch.float32, 0)
    values[1::4] = values[2::4] = values[::4].median()
    wanted = mft.mask_of(values, "w", ratio="0.5", rank_by="value")
    assert torch.equal(kept(values, "0.5", "value"), wanted)


def test_infinities_are_ranked() -> None:
    values = torch.tensor([math.inf, 0.5, -math.inf, -0.25, 0.0])
    assert kept(values, "0.4", "value").tolist() == [True, True, False, False, True]
    assert kept(values, "0.4", "magnitude").tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("select", [keep_highest, keep_above])
def test_a_nan_is_reported_by_name(select: Any, sign: float) -> None:
    values = torch.ones(100)
    values[37] = math.copysign(math.nan, sign)
    more = (10, 0) if select is keep_highest else (0.0,)
    with pytest.raises(DeltaLensError, match=r"scores of q_proj: holds NaN"):
        select(values, *more, name="scores of q_proj")
