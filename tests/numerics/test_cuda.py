"""On a CUDA device the core gives, bit for bit, what it gives on the CPU."""

import pytest
import torch

from deltalens.numerics.edit import revert_to_base
from deltalens.numerics.hashing import hashed_range
from deltalens.numerics.selection import (
    Chunk,
    Counts,
    Selection,
    find_boundaries,
    find_random_boundaries,
    keep_highest,
)
from tests.support.sources import parts_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def grid(dtype: torch.dtype) -> torch.Tensor:
    """Many ties, zeros and subnormals."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(300_007, generator=generator) * 8).round() / 8
    values[::7] = 0
    values[::11] *= torch.finfo(dtype).tiny
    return values.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_histogram_is_the_same(dtype):
    values = grid(dtype)
    here, there = Counts.empty(dtype), Counts.empty(dtype, "cuda")
    here.update(values)
    there.update(values.cuda())
    assert torch.equal(here.counts, there.counts.cpu())
    assert here.zeros == there.zeros


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strategy", ["salient", "trivial"])
def test_the_selection_is_the_same(dtype, strategy):
    values = grid(dtype)
    sizes = [0, 1, 1000, 150_000, 299_999, 300_007]
    here = find_boundaries(parts_of({"a": values}), sizes, seed=3)
    there = find_boundaries(parts_of({"a": values.cuda()}), sizes, seed=3)
    assert here == there
    for boundary in here:
        selection = Selection(strategy, boundary, 3)
        one = selection.mask("a", 0, values)
        assert torch.equal(one, selection.mask("a", 0, values.cuda()).cpu())


def test_the_random_order_is_the_same():
    def members(device):
        hashes = hashed_range(0, 100_000, 5, torch.device(device))
        return [lambda: (Chunk("a", 0, one) for one in hashes)]

    here, there = (
        find_random_boundaries(members(device), 100_000, [1, 500, 99_000])
        for device in ("cpu", "cuda")
    )
    assert here == there


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_threshold_is_the_same(dtype):
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(1)).to(dtype)
    for rank in (0, 1 << 18, (1 << 20) - 1):
        here, there = (keep_highest(some, rank, 5) for some in (values, values.cuda()))
        assert here.boundary == there.boundary
        assert torch.equal(here.mask.bytes, there.mask.bytes.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_put_back_is_the_same(dtype):
    ft, base = grid(dtype), grid(dtype).flip(0)
    mask = torch.arange(ft.numel()) % 3 == 0
    here = revert_to_base(ft, base, mask)
    there = revert_to_base(ft.cuda(), base.cuda(), mask.cuda())
    assert torch.equal(here, there.cpu())
