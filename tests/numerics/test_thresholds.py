"""Thresholds are the magnitudes at a rank, without the order among ties."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import (
    Backend,
    Entries,
    OnCpu,
    OnDevice,
    keep_highest,
    rank_units,
)
from deltalens.numerics.workers import serial_map
from tests.support.cuts import Cut, cut, resized
from tests.support.oracles import order as oracle
from tests.support.oracles.pairs import as_bits, make, tensors
from tests.support.profile import repeatable
from tests.support.selecting import cuts, dtypes

pytestmark = [pytest.mark.property, pytest.mark.oracle]

BACKENDS = [OnCpu(serial_map, Scratch()), OnDevice(None)]


def thresholds(backend: Backend, unit: Mapping[str, Tensor], ranks: Sequence[int]) -> list[int]:
    """The magnitude bits at these ranks of the entries of a unit."""
    units = [[Entries(name, tensor) for name, tensor in unit.items()]]
    (found,) = rank_units(backend, units, backend.count(units), [ranks]).bits
    return [int(bits) for bits in found]


def threshold_of(values: Tensor, rank: int) -> int:
    """That of one rank of a tensor, from a sample."""
    boundary = keep_highest(values, rank + 1, 0).boundary
    return boundary.below - (boundary.tie is None)


@dtypes
@repeatable(15)
@given(data=st.data(), sizes=cuts, sample=st.integers(1, 30), sigmas=st.sampled_from([0.1, 5.0]))
def test_thresholds_are_those_of_a_sort(
    dtype: torch.dtype, data: st.DataObject, sizes: Cut, sample: int, sigmas: float
) -> None:
    unit = data.draw(tensors(dtype))
    ranked = sorted(size for tensor in unit.values() for size in oracle.magnitudes(tensor))
    if not ranked:
        return
    ranks = data.draw(st.lists(st.integers(0, len(ranked) - 1), min_size=1, max_size=5))
    with cut(sizes), resized(tensor_sample=sample, sample_sigmas=sigmas):
        for backend in BACKENDS:
            assert thresholds(backend, unit, ranks) == [ranked[rank] for rank in ranks]
        whole = torch.cat(list(unit.values()))
        for rank in ranks:
            assert threshold_of(whole, rank) == ranked[rank]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["normal", "sparse", "grid", "near", "equal"])
def test_thresholds_of_a_large_tensor(dtype: torch.dtype, kind: str) -> None:
    values = make(kind, 300_000, dtype, 0)
    bits = np.sort((as_bits(values) & torch.iinfo(as_bits(values).dtype).max).numpy())
    ranks = [0, 1, 3000, 150_000, 299_998, 299_999]
    for rank in ranks:
        assert threshold_of(values, rank) == bits[rank]
    for backend in BACKENDS:
        assert thresholds(backend, {"w": values}, ranks) == [bits[rank] for rank in ranks]


def test_ranks_outside_the_tensor_are_refused() -> None:
    for rank in (-1, 3):
        with pytest.raises(IndexError):
            keep_highest(torch.ones(3), rank if rank < 0 else rank + 1, 0)
        with pytest.raises(IndexError):
            thresholds(BACKENDS[0], {"w": torch.ones(3)}, [rank])
