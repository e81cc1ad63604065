"""`inspect`'s figures are the slow twin's.

How near they must be: counts and shares of entries are exact. Norms are sums in fp64, equal to
1e-9. A histogram bin of fp32 is 1/128 of an octave wide: a quantile is the lower edge of the right
bin, at most 1/128 below; figures made of bin middles have each size right to 1/256, so the share of
energy in the top (squares over squares) is right to (1 + 1/256)^4, and the kurtosis (fourth powers
over squared squares) to (1 + 1/256)^8. That is for deltas that are normal fp32 numbers.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.io.records import load_study
from deltalens.studies.inspect import Group, Inspection
from tests.support.cuts import Cut, cut, torch_threads
from tests.support.oracles.anatomy import Anatomy, anatomy
from tests.support.oracles.order import block
from tests.support.oracles.pairs import make, write_checkpoint
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]

NAMES = ("model.layers.0.q.weight", "model.layers.0.up.weight", "model.layers.1.q.weight", "norm")
DTYPES = [torch.float16, torch.bfloat16, torch.float32]

BIN = 1 / 128
SHARES = (1 + 1 / 256) ** 4 - 1
KURTOSIS = (1 + 1 / 256) ** 8 - 1


def inspected(
    ft: dict[str, Tensor], base: dict[str, Tensor], out: Path | None = None, chunk: int = 1 << 18
) -> Inspection:
    with TemporaryDirectory() as name, cut(Cut(chunk=chunk, part=2 * chunk)):
        half = len(ft) // 2
        shards = [list(ft)[:half], list(ft)[half:]] if half else None
        one = write_checkpoint(Path(name) / "ft", ft, shards)
        return deltalens.inspect(one, write_checkpoint(Path(name) / "base", base), out)


def all_of(tensors: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in names])


def check_group(group: Group, true: Anatomy, bf16: bool) -> None:
    assert group.entries == true.n
    assert group.unchanged == true.unchanged / true.n
    if true.base_squared_norm:
        assert group.relative_norm == pytest.approx(true.relative_norm, rel=1e-9)
    else:
        assert math.isnan(group.relative_norm)
    for share, found in group.quantiles.items():
        wanted = true.quantile(share)
        assert found <= wanted <= found * (1 + BIN)
    if true.changed == 0:
        assert math.isnan(group.tail)
        assert all(math.isnan(share) for share in group.energy.values())
        assert math.isnan(group.vanishing)
        return
    assert group.tail == pytest.approx(true.kurtosis, rel=KURTOSIS)
    for top, found in group.energy.items():
        assert found == pytest.approx(true.energy(top), rel=SHARES)
        assert found <= 1 + 1e-12
    if bf16:
        assert math.isnan(group.vanishing)
    else:
        assert group.vanishing == true.vanishing / true.changed


def check_all(found: Inspection, ft: dict[str, Tensor], base: dict[str, Tensor]) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for name in ft:
        kind = {"0.q": "q", "1.q": "q", "0.up": "up"}.get(name[13:].removesuffix(".weight"), "norm")
        keys = ("tensor", name), ("layer", block(name) or name), ("kind", kind), ("overall", "all")
        for key in keys:
            groups.setdefault(key, []).append(name)
    groups = {key: names for key, names in groups.items() if sum(ft[n].numel() for n in names)}
    shown = {(g.level, g.name): g for g in found.groups if g.entries}
    assert shown.keys() == groups.keys()
    for key, names in groups.items():
        one, other = all_of(ft, names), all_of(base, names)
        bf16 = one.dtype == other.dtype == torch.bfloat16
        check_group(shown[key], anatomy(one, other), bf16)


@pytest.mark.parametrize("ft_dtype", DTYPES)
@pytest.mark.parametrize("base_dtype", DTYPES)
@repeatable(4)
@given(
    kinds=st.lists(st.sampled_from(["grid", "normal", "sparse", "near", "zeros"]), min_size=8),
    sizes=st.lists(st.integers(0, 90), min_size=4, max_size=4),
    near=st.booleans(),
    chunk=st.integers(10, 60),
)
def test_every_figure_is_the_slow_twins(
    ft_dtype: torch.dtype,
    base_dtype: torch.dtype,
    kinds: list[str],
    sizes: list[int],
    near: bool,
    chunk: int,
) -> None:
    ft = {name: make(kinds[at], sizes[at], ft_dtype, at) for at, name in enumerate(NAMES)}
    base = {name: make(kinds[4 + at], sizes[at], base_dtype, 9) for at, name in enumerate(NAMES)}
    if near:  # small changes, of which a cast to bf16 loses many
        base = {
            name: (tensor.double() * (1 + 2.0 ** -(at + 7))).to(base_dtype)
            for at, (name, tensor) in enumerate(ft.items())
        }
    if not sum(anatomy(ft[name], base[name]).changed for name in NAMES):
        with pytest.raises(DeltaLensError):
            inspected(ft, base)
        return
    check_all(inspected(ft, base, chunk=chunk), ft, base)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_larger_tensors(dtype: torch.dtype) -> None:
    ft = {name: make("normal", 5_000, dtype, at) for at, name in enumerate(NAMES)}
    base = {name: make("sparse", 5_000, dtype, at + 4) for at, name in enumerate(NAMES)}
    check_all(inspected(ft, base, chunk=700), ft, base)


def test_a_normal_delta_has_the_figures_of_the_normal_distribution() -> None:
    base = {"w": make("normal", 200_000, torch.float32, 0)}
    ft = {"w": base["w"] + 0.01 * make("normal", 200_000, torch.float32, 1)}
    group = inspected(ft, base).groups[0]
    assert group.tail == pytest.approx(3, rel=0.05)
    assert group.relative_norm == pytest.approx(0.01, rel=0.02)
    assert group.quantiles[0.5] == pytest.approx(0.006745, rel=0.02)
    assert group.quantiles[0.99] == pytest.approx(0.025758, rel=0.03)


def test_changes_of_two_kinds_are_told_apart_by_the_cast_to_bf16() -> None:
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0, -2.0, 0.0])}
    ft = {"w": torch.tensor([1.0, 1.0 + 2**-12, 1.0 + 2**-6, 1.0 - 2**-13, -2.0, 2**-40])}
    group = inspected(ft, base).groups[0]
    assert group.unchanged == 2 / 6
    assert group.vanishing == 2 / 4


def test_fp32_fine_tune_of_a_bf16_base_shows_what_its_cast_to_bf16_loses() -> None:
    base = {"w": make("normal", 400, torch.bfloat16, 0)}
    ft = {"w": base["w"].float() * (1 + 2**-9 * make("normal", 400, torch.float32, 1))}
    cast = ft["w"].to(torch.bfloat16)
    lost = ((ft["w"] != base["w"]) & (cast == base["w"])).sum() / (ft["w"] != base["w"]).sum()
    found = inspected(ft, base)
    assert found.groups[0].vanishing == pytest.approx(float(lost), rel=1e-6)
    assert 0.2 < float(lost) < 0.9


def test_what_becomes_zero_of_either_sign_in_bf16_vanishes() -> None:
    base = {"w": torch.tensor([-1e-44, 1.0])}
    ft = {"w": torch.tensor([1e-44, 2.0])}
    assert anatomy(ft["w"], base["w"]).vanishing == 1
    assert inspected(ft, base).groups[0].vanishing == 0.5


def test_cuts_change_nothing() -> None:
    ft = {name: make("sparse", 300, torch.float32, at) for at, name in enumerate(NAMES)}
    base = {name: make("grid", 300, torch.float32, at) for at, name in enumerate(NAMES)}
    plain = inspected(ft, base)
    with torch_threads(3):
        other = inspected(ft, base, chunk=17)
    assert plain.histograms == other.histograms
    for one, two in zip(plain.groups, other.groups, strict=True):
        assert (one.level, one.name) == (two.level, two.name)
        assert one.metrics() == pytest.approx(two.metrics(), rel=1e-12, nan_ok=True)


def test_histograms_by_quarters_of_an_octave_count_every_change() -> None:
    ft = {name: make("normal", 200, torch.float32, at) for at, name in enumerate(NAMES)}
    base = {name: make("sparse", 200, torch.float32, at + 9) for at, name in enumerate(NAMES)}
    found = inspected(ft, base)
    for layer, counts in found.histograms.items():
        names = [name for name in NAMES if (block(name) or name) == layer]
        true = anatomy(all_of(ft, names), all_of(base, names))
        assert sum(counts.values()) == true.changed
        for place in counts:
            inside = sum(place <= 4 * math.log2(s) < place + 1 for s in true.sizes if s)
            # An entry may be moved by one bin, an octave's 1/128, across an edge.
            edges = [2 ** (place / 4), 2 ** ((place + 1) / 4)]
            unsure = sum(
                any(e * (1 - BIN) <= s <= e * (1 + BIN) for e in edges) for s in true.sizes
            )
            assert abs(counts[place] - inside) <= unsure


def test_the_records_hold_the_figures(tmp_path: Path) -> None:
    ft = {name: make("normal", 50, torch.float32, at) for at, name in enumerate(NAMES)}
    base = {name: make("normal", 50, torch.float32, at + 9) for at, name in enumerate(NAMES)}
    found = inspected(ft, base, tmp_path / "study")
    table = load_study(tmp_path / "study").cells
    for group in found.groups:
        rows = table[(table["level"] == group.level) & (table["name"] == group.name)]
        written = dict(zip(rows["metric"], rows["value"], strict=True))
        for metric, value in group.metrics().items():
            if metric != "entries":
                assert written[metric] == pytest.approx(value, rel=1e-12, nan_ok=True)
        assert set(rows["n"]) == {group.entries}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_reported_by_name(value: float) -> None:
    ft = {name: make("normal", 50, torch.float32, at) for at, name in enumerate(NAMES)}
    base = {name: tensor * 1.5 for name, tensor in ft.items()}
    base[NAMES[2]][31] = value
    with pytest.raises(DeltaLensError, match=NAMES[2]):
        inspected(ft, base, chunk=8)


def test_layers_stand_in_the_order_of_the_model(tmp_path: Path) -> None:
    order = ["model.embed_tokens.weight", *(f"model.layers.{n}" for n in range(12))]
    order += ["model.norm.weight", "lm_head.weight"]
    names = [name if name.endswith("weight") else f"{name}.up.weight" for name in order]
    base = {name: make("normal", 20, torch.float32, at) for at, name in enumerate(names)}
    ft = {name: tensor * 1.5 for name, tensor in base.items()}
    found = inspected(ft, base, tmp_path / "study")
    assert [group.name for group in found.groups if group.level == "layer"] == order
    assert [group.name for group in found.groups if group.level == "tensor"] == names
    assert [*found.histograms] == order
    written = load_study(tmp_path / "study").cells
    assert [*dict.fromkeys(written[written["level"] == "layer"]["name"])] == order
    assert [*dict.fromkeys(written[written["level"] == "tensor"]["name"])] == names
