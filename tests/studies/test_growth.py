"""A study that is asked for more grows: its folder is that of one call for all of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deltalens
from deltalens.errors import DeltaLensError, RecordError
from deltalens.figures import draw
from deltalens.io.records import load_study
from deltalens.reports.drop import summarize_drop_study
from deltalens.scoring import texts
from deltalens.studies import drop_run, layer_run
from deltalens.studies.efficiency import efficiency
from deltalens.studies.landscape.grid import Axis, common_grid
from deltalens.training.methods import read_methods
from deltalens.training.spec import TrainingSpec
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.quadratics import Raising, quadratics, scan
from tests.support.runs import FEW, StopAfter, command, journal, on_each_cell
from tests.support.studies import drop_study, sweep_layers_drop
from tests.support.training_folders import write_model, write_rows

FOLDER = ("cells.csv", "study.json")


@pytest.fixture
def pair(pair_of: PairOf) -> Pair:
    found: Pair = pair_of(family="llama")
    return found


def files(folder: Path, *more: str) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (*FOLDER, *more)]


def norms(model: nn.Module) -> dict[str, float]:
    return {"norm": sum(float(p.double().pow(2).sum()) for p in model.parameters())}


PARTS: list[list[dict[str, Any]]] = [
    [{"rates": "0.5"}, {"rates": "0.25,0.9"}],
    [{"strategies": ["trivial"]}, {"strategies": ["random", "salient"]}],
    [{"seeds": 1}, {"seeds": 3}],
    [
        {"strategies": ["random"], "rates": "0.5", "seeds": 2},
        {"strategies": ["trivial"], "rates": "0.1", "seeds": 1},
        {"strategies": ["random"], "rates": "0.9", "seeds": 1},
    ],
]
WHOLE: list[dict[str, Any]] = [
    {"rates": "0.25,0.5,0.9"},
    {},
    {"seeds": 3},
    {"strategies": ["trivial", "random"], "rates": "0.9,0.1,0.5", "seeds": 2},
]


@pytest.mark.parametrize("case", range(len(PARTS)))
@pytest.mark.parametrize("own", [True, False], ids=["metric", "fidelity"])
def test_a_drop_study_grows_and_a_part_of_it_changes_nothing(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: int, own: bool
) -> None:
    measured: dict[str, Any] = {"metric": norms} if own else {"fidelity": FEW}
    more = () if own else ("texts.json",)

    def study(out: str, spec: dict[str, Any]) -> None:
        given = {"rates": "0.5", "seeds": 2, **measured, **spec}
        drop_study(pair.ft, pair.base, tmp_path / out, **given)

    study("whole", WHOLE[case])
    for number, part in enumerate(PARTS[case]):
        if number == 1:  # From here on the texts are those of the first call.
            monkeypatch.setattr(texts, "sample_texts", None)
        study("s", part)
    assert files(tmp_path / "s", *more) == files(tmp_path / "whole", *more)
    monkeypatch.setattr(drop_run, "LiveModel", None)
    for part in PARTS[case]:
        study("s", part)
    assert files(tmp_path / "s", *more) == files(tmp_path / "whole", *more)


@pytest.mark.property
@settings(max_examples=15, deadline=None)
@given(
    calls=st.lists(
        st.fixed_dictionaries(
            {
                "strategies": st.lists(
                    st.sampled_from(["salient", "trivial", "random"]), min_size=1, unique=True
                ),
                "rates": st.lists(
                    st.sampled_from(["0.1", "0.25", "1/3", "0.5", "0.999"]).map(Fraction),
                    min_size=1,
                    max_size=3,
                ),
                "seeds": st.integers(1, 3),
            }
        ),
        min_size=2,
        max_size=3,
    )
)
def test_whatever_order_its_parts_come_in(pair_of: PairOf, calls: list[dict[str, Any]]) -> None:
    pair = pair_of(family="llama")
    folder = Path(tempfile.mkdtemp())
    try:
        for call in calls:
            deltalens.drop_study(pair.ft, pair.base, folder / "s", metric=norms, **call)
        union = {
            "strategies": [name for call in reversed(calls) for name in call["strategies"]],
            "rates": [rate for call in reversed(calls) for rate in call["rates"]],
            "seeds": max(call["seeds"] for call in calls),
        }
        deltalens.drop_study(pair.ft, pair.base, folder / "whole", metric=norms, **union)
        assert files(folder / "s") == files(folder / "whole")
    finally:
        shutil.rmtree(folder)


def test_growth_that_is_stopped_goes_on(pair: Pair, tmp_path: Path) -> None:
    def study(out: str, rates: str, **more: Any) -> None:
        given = {"rates": rates, "seeds": 1, "metric": norms, **more}
        deltalens.drop_study(pair.ft, pair.base, tmp_path / out, **given)

    study("whole", "0.1,0.5,0.9")
    study("s", "0.5")
    stopped = on_each_cell(StopAfter(2, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        study("s", "0.1,0.9", watch=stopped)
    study("s", "0.9")
    assert files(tmp_path / "s") == files(tmp_path / "whole")


def test_growth_that_cannot_begin_leaves_the_study_as_it_was(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"
    deltalens.drop_study(pair.ft, pair.base, out, metric=norms, rates="0.5", seeds=1)
    before = files(out)
    monkeypatch.setattr(drop_run, "LiveModel", StopAfter(1, DeltaLensError("no room")))
    with pytest.raises((DeltaLensError, TypeError)):
        deltalens.drop_study(pair.ft, pair.base, out, metric=norms, rates="0.9", seeds=1)
    assert files(out) == before


def test_anything_else_is_refused_by_its_name(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "s"
    deltalens.drop_study(pair.ft, pair.base, out, metric=norms, rates="0.5", seeds=1)
    before = files(out)
    with pytest.raises(RecordError) as raised:
        deltalens.drop_study(
            pair.ft, pair.base, out, metric=norms, rates="0.9", seeds=2, scope="layer"
        )
    assert str(raised.value).splitlines()[1:] == ["  - scope: 'tensor' in the folder, 'layer' now"]
    assert files(out) == before


@pytest.mark.parametrize("cache_gb", [0.0, 4.0])
def test_a_sweep_over_layers_grows(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_gb: float
) -> None:
    def study(out: str, *groups: int) -> None:
        sweep_layers_drop(
            pair.ft, pair.base, tmp_path / out, groups=groups, fidelity=FEW, cache_gb=cache_gb
        )

    study("whole", 2, 1)
    study("s", 2)
    study("s", 1)
    assert files(tmp_path / "s", "texts.json") == files(tmp_path / "whole", "texts.json")
    monkeypatch.setattr(layer_run, "LiveModel", None)
    study("s", 2)
    assert files(tmp_path / "s", "texts.json") == files(tmp_path / "whole", "texts.json")


@pytest.mark.parametrize(
    ("plane", "grids", "whole"),
    [
        ("line", (5, 9, 3), 9),
        ("checkpoints", ("3x5", "5x3"), "5x5"),
        ("random", ("2x3", "3x5"), "3x5"),
        ("hessian", ("2x3", "5x3"), "5x3"),
    ],
)
@pytest.mark.parametrize("span", [None, "-0.7:1.3"])
def test_a_landscape_grows_by_points_between(
    tmp_path: Path, plane: str, grids: tuple[Any, ...], whole: Any, span: str | None
) -> None:
    origin, *others = quadratics(3)
    between = {"checkpoints": others[:2], "line": others[:1]}.get(plane, [])
    spec: dict[str, Any] = {"plane": plane, "others": between, "span": span}
    scan(origin, tmp_path / "whole", grid=whole, **spec)
    for grid in grids:
        scan(origin, tmp_path / "s", grid=grid, **spec)
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    assert len(journal(tmp_path / "s")) == len(journal(tmp_path / "whole"))
    for grid in grids:
        scan(
            origin,
            tmp_path / "s",
            grid=grid,
            metric=Raising(1, AssertionError("measured again")),
            **spec,
        )
    assert files(tmp_path / "s") == files(tmp_path / "whole")
    with pytest.raises(RecordError, match="grid: "):
        scan(origin, tmp_path / "s", grid=7 if plane == "line" else "7x3", **spec)


@pytest.mark.property
@given(
    few=st.integers(2, 40),
    doubled=st.integers(0, 5),
    low=st.floats(-1e6, 1e6),
    wide=st.floats(1e-6, 1e6),
)
def test_points_of_a_coarse_grid_are_points_of_a_finer_one_to_the_last_bit(
    few: int, doubled: int, low: float, wide: float
) -> None:
    many = (few - 1) * 2**doubled + 1
    assert common_grid([few, many], [many, few]) == [many, many]
    coarse, fine = (Axis(low, low + wide, count).values for count in (few, many))
    assert fine[:: 2**doubled] == coarse


def test_an_efficiency_study_grows_by_repeats(tmp_path: Path) -> None:
    base, rows = write_model(tmp_path / "base"), write_rows(tmp_path / "rows.jsonl")
    given: dict[str, Any] = {"methods": read_methods("sft"), "steps": 1}
    efficiency(base, rows, tmp_path / "s", TrainingSpec(), repeats=1, **given)
    first = journal(tmp_path / "s")
    record = efficiency(base, rows, tmp_path / "s", TrainingSpec(), repeats=2, **given)
    assert journal(tmp_path / "s")[:1] == first
    assert record.spec["repeats"] == 2
    assert set(record.cells["repeat"]) == {0, 1}
    given["methods"] = read_methods("sft,gmt")
    with pytest.raises(RecordError, match="methods: "):
        efficiency(base, rows, tmp_path / "s", TrainingSpec(), repeats=2, **given)


@pytest.mark.parametrize(
    ("seeds", "said"), [(1, "(one random order)"), (3, "(mean of 3 random orders)")]
)
def test_a_claim_about_random_says_on_how_many_orders_it_rests(
    pair: Pair, tmp_path: Path, seeds: int, said: str
) -> None:
    deltalens.drop_study(
        *(pair.ft, pair.base, tmp_path / "s"),
        metric=norms,
        better={"norm": "higher"},
        rates="0.5,0.9",
        seeds=seeds,
    )
    summary = summarize_drop_study(load_study(tmp_path / "s"))
    (line,) = [line for line in summary.sentences() if line.startswith("random")]
    assert said in line
    assert [line for line in summary.sentences() if "order" in line] == [line]
    found = summary.as_json()["strategies"]
    assert found["random"]["orders"] == seeds
    assert "orders" not in found["trivial"]


@pytest.mark.parametrize(("seeds", "bands"), [(1, 2), (2, 3)])
def test_random_of_one_order_has_no_band(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int, bands: int
) -> None:
    """The other two have the measurement's standard error."""
    from matplotlib.axes import Axes

    labels: list[str] = []
    drawn: list[int] = []
    plot, fill = Axes.plot, Axes.fill_between

    def plotted(axis: Any, *given: Any, **how: Any) -> Any:
        labels.append(str(how.get("label")))
        return plot(axis, *given, **how)

    def filled(axis: Any, *given: Any, **how: Any) -> Any:
        drawn.append(1)
        return fill(axis, *given, **how)

    drop_study(*(pair.ft, pair.base, tmp_path / "s"), fidelity=FEW, rates="0.5", seeds=seeds)
    monkeypatch.setattr(Axes, "plot", plotted)
    monkeypatch.setattr(Axes, "fill_between", filled)
    draw(tmp_path / "s")
    assert len(drawn) == 2 * bands, "of two metrics"
    orders = "1 order" if seeds == 1 else f"mean of {seeds} orders"
    assert f"random ({orders})" in labels


OTHER = (lambda model: {"norm": 1.0}, lambda model: {"norm": 2.0})


def test_another_metric_of_the_same_name_is_another_study(pair: Pair, tmp_path: Path) -> None:
    given: dict[str, Any] = {"rates": "0.5", "seeds": 1}
    out = tmp_path / "s"
    deltalens.drop_study(pair.ft, pair.base, out, metric=OTHER[0], **given)
    with pytest.raises(RecordError, match=r"metric\.parts\.code: "):
        deltalens.drop_study(pair.ft, pair.base, out, metric=OTHER[1], **given)
    layers = tmp_path / "layers"
    sweep_layers_drop(pair.ft, pair.base, layers, metric=OTHER[0])
    with pytest.raises(RecordError, match=r"metric\.parts\.code: "):
        sweep_layers_drop(pair.ft, pair.base, layers, metric=OTHER[1])
    (origin,) = quadratics(1)
    plane: dict[str, Any] = {"grid": 3, "plane": "random"}
    deltalens.scan_landscape(origin, tmp_path / "plane", metric=OTHER[0], **plane)
    with pytest.raises(RecordError, match=r"metric\.parts\.code: "):
        deltalens.scan_landscape(origin, tmp_path / "plane", metric=OTHER[1], **plane)


def test_another_loss_to_differentiate_is_another_landscape(tmp_path: Path) -> None:
    (origin,) = quadratics(1)
    losses = (lambda model: model.loss(), lambda model: 2 * model.loss())
    spec: dict[str, Any] = {"plane": "hessian", "grid": "2x2", "version": None}
    scan(origin, tmp_path / "s", loss=losses[0], **spec)
    with pytest.raises(RecordError, match=r"loss\.parts\.code: "):
        scan(origin, tmp_path / "s", loss=losses[1], **spec)


def test_what_a_model_in_memory_keeps_beside_what_moves_counts(tmp_path: Path) -> None:
    one, other = quadratics(2)
    spec: dict[str, Any] = {"plane": "random", "grid": 3}
    scan(one, tmp_path / "s", **spec)
    one.slope.add_(1)
    with pytest.raises(RecordError, match=r"module\.parts\.tensors: "):
        scan(one, tmp_path / "s", **spec)
    with pytest.raises(RecordError, match="origin: "):
        scan(other, tmp_path / "s", **spec)


def test_a_metric_that_nobody_can_compare_needs_a_version_to_go_on(
    pair: Pair, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"rates": "0.5", "seeds": 1}
    for version in (None, "a"):
        out = tmp_path / str(version)
        for call in (1, 2):
            held = iter([call])

            def metric(model: nn.Module, held: Any = (one for one in held)) -> dict[str, float]:
                return {"norm": 1.0}

            if version is None and call == 2:
                with pytest.raises(RecordError, match=r"cannot be resumed: .*version="):
                    deltalens.drop_study(pair.ft, pair.base, out, metric=metric, **given)
            else:
                deltalens.drop_study(
                    pair.ft, pair.base, out, metric=metric, version=version, **given
                )
    with pytest.raises(DeltaLensError, match="version 'a' is the version of a metric of your own"):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "none", version="a", **given)


@pytest.mark.parametrize("found", [None, [0.5], {"a": "b"}, {"a": None}, {}])
def test_a_metric_that_gives_no_numbers_is_refused(pair: Pair, tmp_path: Path, found: Any) -> None:
    with pytest.raises(DeltaLensError, match=r"the metric returned .*\{"):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", metric=lambda model: found)
    (origin,) = quadratics(1)
    with pytest.raises(DeltaLensError, match=r"the metric returned .*\{"):
        deltalens.scan_landscape(origin, tmp_path / "plane", metric=lambda model: found)
    assert not list(tmp_path.iterdir())


def test_the_command_grows_a_study_too(pair: Pair, tmp_path: Path) -> None:
    for rates in ("0.5", "0.25,0.9"):
        result = command("drop-study", pair.ft, pair.base, "-o", tmp_path / "s", "--rates", rates)
        assert result.exit_code == 0, result.output
    spec = json.loads((tmp_path / "s" / "study.json").read_text())["asked"]
    assert spec["rates"] == ["0", "0.25", "0.5", "0.9", "1"]
