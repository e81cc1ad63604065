"""What a probe measures of gradients equals the slow twins, whatever the gradients are like."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from deltalens.gradients import Gradient, GradientStep, ranked
from deltalens.gradients.surveys import Survey, fetch_surveys
from deltalens.names import Scope
from deltalens.numerics import constants
from deltalens.numerics.masks import (
    PackedMask,
    compare,
    compare_on_device,
    containment,
    expected_jaccard,
    jaccard,
)
from deltalens.numerics.scratch import Scratch
from deltalens.probes.columns import QUANTILES
from tests.support.cuts import resized
from tests.support.oracles import gradients as oracle
from tests.support.oracles.pairs import KINDS, make
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
SCOPES: list[Scope] = ["tensor", "layer", "global"]
NAMES = ["model.embed", "model.layers.0.q", "model.layers.0.k", "model.layers.1.q", "model.norm"]


SGD = torch.optim.SGD([torch.zeros(())])


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


@pytest.fixture(params=["here", "there"], scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The compiled loops for the CPU, and what accelerators and shards are measured with."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "there":
            patch.setattr(ranked, "is_whole_on_cpu", lambda gradient: False)
        yield


@contextmanager
def pieces_of(size: int) -> Iterator[None]:
    with resized(chunk=size, device_chunk=size):
        yield


@pytest.fixture(params=[64, 1 << 18], ids=["small pieces", "one piece"], scope="module")
def chunk(request: pytest.FixtureRequest) -> Iterator[None]:
    with pieces_of(request.param):
        yield


def survey(given: list[Gradient], scope: Scope, spec: list[float]) -> list[Survey]:
    fractions = list(QUANTILES.values())
    with ranked.rank_gradients(GradientStep(SGD, 0), given, scope, Scratch(), fractions) as found:
        return found.survey(spec)


def measured(
    given: list[Gradient], scope: Scope = "tensor", spec: list[float] | None = None
) -> list[Survey]:
    found = survey(given, scope, spec or [])
    assert fetch_surveys(found, []) == []
    return found


@dtypes
@pytest.mark.parametrize("scope", SCOPES)
@repeatable(8)
@given(data=st.data(), spec=ratios)
def test_thresholds_and_masks_are_those_of_a_sort(
    engine: None, dtype: torch.dtype, scope: Scope, data: st.DataObject, spec: list[float]
) -> None:
    tensors = data.draw(steps(dtype))
    scale = data.draw(st.sampled_from([None, torch.tensor(4.0)]))
    scaled = {n: t if scale is None else t * 4 for n, t in tensors.items()}
    if scale is not None:
        tensors = {n: t / 4 for n, t in scaled.items()}
    with pieces_of(data.draw(st.sampled_from([64, 1 << 18]))):
        found = measured([gradient(n, t, scale) for n, t in scaled.items()], scope, spec)
    unit_of = oracle.blocks(list(tensors), scope)
    for one in found:
        unit = {n: t for n, t in tensors.items() if unit_of[n] == unit_of[one.gradient.name]}
        for ratio in spec:
            top = one.tops[ratio]
            assert top.threshold == oracle.threshold(unit, ratio)
            places = top.mask.unpacked().nonzero().squeeze(1).tolist()
            wanted = {p for n, p in oracle.mask(unit, ratio) if n == one.gradient.name}
            assert set(places) == wanted
            counts = compare(top.mask, [None] * 3, PackedMask(top.mask.size))
            assert int(counts[0]) == len(wanted)


@pytest.mark.parametrize("size", [0, 1, 2, 5, 31, 32, 33, 64, 70])
@dtypes
def test_any_length_wherever_it_begins(engine: None, size: int, dtype: torch.dtype) -> None:
    for offset in range(8):
        check_numbers(make("grid", 100, dtype, 7)[offset : offset + size], size)


def check_numbers(values: Tensor, size: int) -> None:
    (one,) = measured([gradient("w", values)], "tensor", [0.5] if size else [])
    assert one.stats.zeros == int((values == 0).sum())
    assert one.stats.octaves.sum() == sum(oracle.octaves(values).values())
    assert one.stats.square_sum == pytest.approx(float(values.double().square().sum()))
    if size:
        least = oracle.threshold({"w": values}, 0.5)
        assert one.tops[0.5].mask.unpacked().tolist() == (values.abs() >= least).tolist()


@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_histograms_and_what_is_counted_apart(
    engine: None, dtype: torch.dtype, kind: str, chunk: None
) -> None:
    values = make(kind, 300, dtype, 3)
    values[[5, 17, 90]] = torch.tensor([math.inf, -math.inf, math.inf], dtype=dtype)
    (one,) = measured([gradient("w", values)])
    low, high, counts = one.stats.bins
    found = dict(zip(zip(low.tolist(), high.tolist(), strict=True), counts.tolist(), strict=True))
    assert found == oracle.octaves(values)
    apart = {
        name: getattr(one.stats, name) for name in ("zeros", "subnormals", "infinities", "nans")
    }
    assert apart == oracle.counted_apart(values)
    assert counts.sum() + sum(apart.values()) == 300


@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_norm_mean_and_quantiles(engine: None, dtype: torch.dtype, kind: str, chunk: None) -> None:
    values = make(kind, 301, dtype, 4)
    (one,) = measured([gradient("w", values)])
    if kind != "any":
        assert math.sqrt(one.stats.square_sum) == pytest.approx(oracle.norm(values), rel=1e-5)
        assert one.stats.magnitude_sum / 301 == pytest.approx(oracle.mean(values), rel=1e-5)
    for fraction, quantile in zip(QUANTILES.values(), one.stats.quantiles, strict=True):
        exact = oracle.quantile(values, fraction)
        if dtype.itemsize == 2:
            assert quantile == exact
        elif exact >= torch.finfo(dtype).tiny:
            assert exact * (1 - 1 / 16) <= quantile <= exact


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e10, 1e25])
def test_norms_of_tiny_and_huge_gradients(engine: None, size: float) -> None:
    values = make("normal", 1000, torch.float32, 0) * size
    (one,) = measured([gradient("w", values)])
    assert math.sqrt(one.stats.square_sum) == pytest.approx(oracle.norm(values), rel=1e-5)


@dtypes
def test_a_loss_scale_is_taken_off(engine: None, dtype: torch.dtype) -> None:
    scale = torch.tensor(1024.0)
    plain = make("grid", 200, dtype, 1)
    (one,) = measured([gradient("w", plain * 1024, scale)], "tensor", [0.5])
    (other,) = measured([gradient("w", plain)], "tensor", [0.5])
    assert np.array_equal(one.stats.octaves, other.stats.octaves)
    assert one.tops[0.5].threshold == other.tops[0.5].threshold
    assert one.stats.square_sum == pytest.approx(other.stats.square_sum)


@dtypes
@pytest.mark.parametrize("scope", SCOPES)
def test_what_holds_a_nan_is_counted_and_not_ranked(
    engine: None, dtype: torch.dtype, scope: Scope
) -> None:
    broken, whole = make("normal", 90, dtype, 0), make("normal", 90, dtype, 1)
    broken[7] = math.nan
    given = [gradient("a.0.w", broken), gradient("a.1.w", whole)]
    found = {one.gradient.name: one for one in measured(given, scope, [0.5])}
    assert found["a.0.w"].stats.nans == 1
    assert not found["a.0.w"].tops
    assert bool(found["a.1.w"].tops) == (scope != "global")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scope", SCOPES)
def test_on_a_device_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scope: Scope
) -> None:
    """Tensors without contents have no value to wait for, nor shapes that depend on one."""
    monkeypatch.setattr(ranked, "is_whole_on_cpu", lambda gradient: False)
    monkeypatch.setattr(PackedMask, "write", PackedMask.write_on_device)
    forget()
    with FakeTensorMode():
        scale = torch.ones(())
        given = [gradient(name, torch.empty(300, dtype=dtype), scale) for name in NAMES]
        found = survey(given, scope, [0.2, 0.9])
        tops = [top for one in found for top in one.tops.values()]
        ever = PackedMask(300)
        rows = [
            compare_on_device(top.mask, [tops[0].mask, None, tops[1].mask], ever) for top in tops
        ]
        assert len(rows) == 2 * len(NAMES)
    forget()


def forget() -> None:
    """What is made once per device, so that nothing without contents stays."""
    for name in constants.__all__:
        getattr(constants, name).cache_clear()


def test_that_waiting_would_be_seen() -> None:
    with FakeTensorMode(), pytest.raises(Exception, match=r"data-dependent|aten"):
        torch.bincount(torch.ones(3, dtype=torch.int64))


masks = st.lists(st.booleans(), min_size=1, max_size=200)


@pytest.mark.parametrize("counted", [compare, compare_on_device], ids=["here", "there"])
@given(one=masks, data=st.data())
def test_packed_masks_count_as_sets_do(
    counted: Callable[..., Tensor], one: list[bool], data: st.DataObject
) -> None:
    lists = st.lists(st.booleans(), min_size=len(one), max_size=len(one))
    packed = []
    drawn = [one, *(data.draw(lists) for _ in range(4))]
    for bits in drawn:
        mask = PackedMask(len(bits))
        for start in range(0, len(bits), 64):
            mask.write(start, torch.tensor(bits[start : start + 64]))
        assert mask.unpacked().tolist() == bits
        packed.append(mask)
    a, b, c, d, e = ({("w", i) for i, bit in enumerate(bits) if bit} for bits in drawn)
    ever = packed[4].copy()
    kept, *both, grown, last = counted(packed[0], packed[1:4], ever).tolist()
    assert (kept, both, last) == (len(a), [len(a & b), len(a & c), len(a & d)], len(d))
    assert grown == len(a | e)
    assert ever.unpacked().tolist() == [x or y for x, y in zip(one, drawn[4], strict=True)]
    assert packed[4].unpacked().tolist() == drawn[4]
    assert jaccard(both[0], kept, len(b)) == oracle.jaccard(a, b)
    assert containment(both[0], kept) == oracle.containment(a, b)
    if a and b:
        assert expected_jaccard(kept, len(b), len(one)) == pytest.approx(
            oracle.chance(a, b, len(one))
        )
    none = [None, packed[1], None]
    assert counted(packed[0], none, ever).tolist() == [len(a), 0, len(a & b), 0, len(a | e), 0]
