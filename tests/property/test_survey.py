"""What a probe measures of gradients equals the slow twins, whatever the gradients are like."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deltalens.gradients import Gradient
from deltalens.numerics import magnitudes
from deltalens.numerics.magnitudes import octave_bins, quantiles
from deltalens.numerics.overlap import PackedMask, chance_of, containment, jaccard
from deltalens.numerics.scratch import Scratch
from deltalens.probes.survey import overlap_counts, survey
from tests.oracles import gradients as oracle
from tests.oracles.pairs import KINDS, make
from tests.property.profile import repeatable

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
SCOPES = ["tensor", "layer", "global"]
NAMES = ["model.embed", "model.layers.0.q", "model.layers.0.k", "model.layers.1.q", "model.norm"]


def gradient(name: str, values: Tensor, scale: Tensor | None = None) -> Gradient:
    return Gradient(name, nn.Parameter(values, requires_grad=False), values, values.numel(), scale)


@st.composite
def steps(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Tensor]:
    """The gradients of one step: every tensor of some nature, none of them empty."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    return {
        name: make(draw(st.sampled_from(KINDS)), draw(st.integers(1, 70)), dtype, seed)
        for seed, name in enumerate(names)
    }


ratios = st.lists(
    st.one_of(st.sampled_from([0.0, 0.5, 0.999]), st.floats(0, 0.9999)),
    min_size=1,
    max_size=3,
    unique=True,
)


@pytest.fixture(params=[8, 1 << 18], ids=["small chunks", "one chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(magnitudes, "CHUNK", request.param)
    return int(request.param)


@dtypes
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kept", [0, 1 << 24], ids=["visited twice", "kept"])
@repeatable(8)
@given(data=st.data(), asked=ratios)
def test_thresholds_and_masks_are_those_of_a_sort(
    dtype: torch.dtype, scope: str, kept: int, data: st.DataObject, asked: list[float]
) -> None:
    tensors = data.draw(steps(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(magnitudes, "CHUNK", 16)
        patch.setattr(magnitudes, "_KEPT", kept)
        found = survey([gradient(n, t) for n, t in tensors.items()], scope, asked, Scratch())
    unit_of = oracle.blocks(list(tensors), scope)
    for one in found:
        unit = {n: t for n, t in tensors.items() if unit_of[n] == unit_of[one.gradient.name]}
        for ratio, top in one.tops.items():
            assert top.threshold == oracle.threshold(unit, ratio)
            assert top.mask is not None
            places = top.mask.unpacked().nonzero().squeeze(1).tolist()
            wanted = {p for n, p in oracle.mask(unit, ratio) if n == one.gradient.name}
            assert set(places) == wanted
            assert top.mask.count == len(wanted)


@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_histograms_and_what_is_counted_apart(dtype: torch.dtype, kind: str, chunk: int) -> None:
    values = make(kind, 300, dtype, 3)
    values[[5, 17, 90]] = torch.tensor([math.inf, -math.inf, math.inf], dtype=dtype)
    (one,) = survey([gradient("w", values)], "tensor", (), Scratch())
    low, high, counts = octave_bins(one.scan)
    found = dict(zip(zip(low.tolist(), high.tolist(), strict=True), counts.tolist(), strict=True))
    assert found == oracle.octaves(values)
    apart = {
        name: getattr(one.scan, name) for name in ("zeros", "subnormals", "infinities", "nans")
    }
    assert apart == oracle.counted_apart(values)
    assert counts.sum() + sum(apart.values()) == 300


@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_norm_mean_and_quantiles(dtype: torch.dtype, kind: str, chunk: int) -> None:
    values = make(kind, 301, dtype, 4)
    (one,) = survey([gradient("w", values)], "tensor", (), Scratch())
    if kind != "any":
        assert math.sqrt(one.scan.squares) == pytest.approx(oracle.norm(values), rel=1e-5)
        assert one.scan.total / 301 == pytest.approx(oracle.mean(values), rel=1e-5)
    fractions = [0.0, 0.5, 0.9, 0.99, 1.0]
    for fraction, quantile in zip(fractions, quantiles(one.scan, fractions), strict=True):
        exact = oracle.quantile(values, fraction)
        if dtype.itemsize == 2:
            assert quantile == exact
        elif exact >= torch.finfo(dtype).tiny:
            assert exact * (1 - 1 / 16) <= quantile <= exact


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e10, 1e25])
def test_norms_of_tiny_and_huge_gradients(size: float) -> None:
    values = make("normal", 1000, torch.float32, 0) * size
    (one,) = survey([gradient("w", values)], "tensor", (), Scratch())
    assert math.sqrt(one.scan.squares) == pytest.approx(oracle.norm(values), rel=1e-5)


@dtypes
def test_a_loss_scale_is_taken_off(dtype: torch.dtype) -> None:
    scale = torch.tensor(1024.0)
    plain = make("grid", 200, dtype, 1)
    (one,) = survey([gradient("w", plain * 1024, scale)], "tensor", (0.5,), Scratch())
    (other,) = survey([gradient("w", plain)], "tensor", (0.5,), Scratch())
    assert np.array_equal(one.scan.counts, other.scan.counts)
    assert one.tops[0.5].threshold == other.tops[0.5].threshold
    assert one.scan.squares == pytest.approx(other.scan.squares)


@dtypes
@pytest.mark.parametrize("scope", SCOPES)
def test_what_holds_a_nan_is_counted_and_not_ranked(dtype: torch.dtype, scope: str) -> None:
    broken, whole = make("normal", 90, dtype, 0), make("normal", 90, dtype, 1)
    broken[7] = math.nan
    given = [gradient("a.0.w", broken), gradient("a.1.w", whole)]
    found = {one.gradient.name: one for one in survey(given, scope, (0.5,), Scratch())}
    assert found["a.0.w"].scan.nans == 1
    assert found["a.0.w"].tops[0.5].mask is None
    assert math.isnan(found["a.0.w"].tops[0.5].threshold)
    assert (found["a.1.w"].tops[0.5].mask is None) == (scope == "global")


masks = st.lists(st.booleans(), min_size=1, max_size=200)


@given(one=masks, data=st.data())
def test_packed_masks_count_as_sets_do(one: list[bool], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.booleans(), min_size=len(one), max_size=len(one)))
    packed = []
    for bits in (one, other):
        mask = PackedMask(len(bits))
        for start in range(0, len(bits), 64):
            mask.write(start, torch.tensor(bits[start : start + 64]))
        assert mask.unpacked().tolist() == bits
        packed.append(mask)
    a, b = ({("w", i) for i, bit in enumerate(bits) if bit} for bits in (one, other))
    ((kept, size, both),) = overlap_counts(
        [(gradient("w", torch.ones(len(one))), packed[0], [packed[1]])]
    )
    assert (kept, size, both) == (len(a), len(b), len(a & b))
    assert jaccard(both, kept, size) == oracle.jaccard(a, b)
    assert containment(both, kept) == oracle.containment(a, b)
    if a and b:
        assert chance_of(kept, size, len(one)) == pytest.approx(oracle.chance(a, b, len(one)))
    grown = packed[0].copy()
    grown.include(packed[1])
    assert grown.count == len(a | b)
    assert packed[0].count == len(a)
