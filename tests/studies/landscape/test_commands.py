"""`deltalens landscape` as it is typed, its records and its pictures."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

import deltalens
from deltalens.figures import Drawing, draw_figure
from deltalens.figures.landscape_panels import load_landscape
from deltalens.reports.landscape import summarize_landscape
from deltalens.studies.engine import StudyWatch
from tests.studies.landscape.conftest import Three
from tests.support.quadratics import Quadratic, measured, quadratics, scan
from tests.support.runs import command, succeeds, table


def typed(three: Three, out: Path, *more: object) -> tuple[object, ...]:
    data = [text for file in three.data for text in ("--data", file)]
    return ("landscape", three.origin, *three.others, *data, "--grid", "3x4", "-o", out, *more)


@pytest.fixture(scope="module")
def study(three: Three, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished landscape with its pictures, and what was printed."""
    out = tmp_path_factory.mktemp("study") / "s"
    return out, succeeds(*typed(three, out, "--base", three.base))


def test_folder_holds_records_table_and_pictures(study: tuple[Path, str]) -> None:
    # Of exact match, which is 0 everywhere, there is none.
    pictures = [
        f"{name}.{kind}" for name in ("landscape", "landscape_3d") for kind in ("png", "svg")
    ]
    found = {file.name for file in study[0].iterdir()}
    assert found == {"cells.csv", "cells.jsonl", "study.json", *pictures}


def test_table_has_every_point_by_data_and_metric(study: tuple[Path, str]) -> None:
    frame = pd.read_csv(study[0] / "cells.csv")
    assert list(frame.columns) == ["a", "b", "mark", "data", "metric", "value", "stderr", "n"]
    grid = frame[frame["mark"] == "grid"]
    assert len(grid) == 12 * 2 * 3
    assert set(frame["data"]) == {"train", "test"}
    assert set(frame["metric"]) == {"exact_match", "loss", "perplexity"}
    assert list(dict.fromkeys(frame["mark"])) == ["ft", "continued", "masked", "base", "grid"]
    places = list(dict.fromkeys(zip(grid["a"], grid["b"], strict=True)))
    assert places == sorted(places), "row by row"
    record = deltalens.load_study(study[0])
    pd.testing.assert_frame_equal(record.cells, frame)


def test_answer_names_the_models_the_best_and_the_distance_of_the_base(
    study: tuple[Path, str],
) -> None:
    out, said = study
    for text in ("train loss: ft ", "test loss: ft ", "; best: ", "at the best grid point ("):
        assert text in said
    assert " off the plane and is shown projected onto it" in said
    assert f"table:   {out / 'cells.csv'}" in said
    assert f"picture: {out / 'landscape.svg'}" in said


def test_picture_has_both_data_sets_the_models_and_the_axes(study: tuple[Path, str]) -> None:
    svg = (study[0] / "landscape.svg").read_text()
    for text in ("train", "test", "ft", "continued", "masked", "base (projected, "):
        assert f">{text}" in svg
    for text in ("loss (nats per target token)", "distance from ft towards", ">continued<"):
        assert text in svg


def test_plot_redraws_the_same_pictures(study: tuple[Path, str]) -> None:
    out = study[0]
    pictures = sorted([*out.glob("*.png"), *out.glob("*.svg")])
    before = [picture.read_bytes() for picture in pictures]
    for picture in pictures:
        picture.unlink()
    assert len(succeeds("plot", out).splitlines()) == len(pictures)
    assert [picture.read_bytes() for picture in pictures] == before


def test_json_is_one_object(three: Three, study: tuple[Path, str]) -> None:
    result = command(*typed(three, study[0], "--base", three.base, "--json"))
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert (found["plane"], found["points"], found["gaps"]) == ("checkpoints", 16, 0)
    assert found["data"]["train"]["metric"] == "loss"
    assert set(found["data"]["test"]["marks"]) == {"ft", "continued", "masked", "base"}
    assert found["data"]["test"]["best_mark"] in {"ft", "continued", "masked"}
    assert [mark["role"] for mark in found["marks"]] == ["origin", "b", "c", "base"]


def test_low_memory_changes_nothing(three: Three, study: tuple[Path, str], tmp_path: Path) -> None:
    deltalens.scan_landscape(
        three.origin,
        tmp_path / "s",
        others=three.others,
        base=three.base,
        data=three.data,
        grid="3x4",
        low_memory=True,
    )
    assert table(tmp_path / "s") == table(study[0])


def test_quiet_prints_nothing(three: Three, tmp_path: Path) -> None:
    line = ("landscape", three.origin, three.b, "--data", three.test, "--metrics", "loss")
    result = command(*line, "--grid", 2, "-o", tmp_path / "s", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_line_has_one_axis_and_tells_of_the_barrier(three: Three, tmp_path: Path) -> None:
    said = succeeds(
        *("landscape", three.origin, three.b, "--data", three.test, "--grid", 7),
        *("--metrics", "loss", "--span=-1:3", "-o", tmp_path / "s"),
    )
    assert "barrier" in said
    frame = deltalens.load_study(tmp_path / "s").cells
    grid = frame[frame["mark"] == "grid"]
    assert (set(grid["b"]), grid["a"].min(), grid["a"].max()) == ({0.0}, -1.0, 3.0)
    assert set(frame["metric"]) == {"loss"}
    assert not (tmp_path / "s" / "landscape_3d.png").exists()


def test_trajectory_takes_the_folder_of_a_run(three: Three, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, folder in ((5, three.base), (20, three.b), (10, three.c)):
        (run / f"checkpoint-{step}").parent.mkdir(exist_ok=True)
        (run / f"checkpoint-{step}").symlink_to(folder, target_is_directory=True)
    (run / "logs").mkdir()
    said = succeeds(
        *("landscape", three.origin, run, "--plane", "trajectory", "--data", three.test),
        *("--grid", "3x3", "-o", tmp_path / "s"),
    )
    assert "of the variance along the trajectory" in said
    marks = deltalens.load_study(tmp_path / "s").facts["plane"]["marks"]
    names = ["ft", "checkpoint-5", "checkpoint-10", "checkpoint-20"]
    assert [mark["name"] for mark in marks] == names
    picture = (tmp_path / "s" / "landscape.svg").read_text()
    assert "variance)" in picture  # The label is set in two lines.


def test_hessian_of_a_language_model_finds_its_sharpest_direction(
    three: Three, tmp_path: Path
) -> None:
    said = succeeds(
        *("landscape", three.origin, "--plane", "hessian", "--data", three.train),
        *("--grid", "3x3", "--metrics", "loss", "-o", tmp_path / "s"),
    )
    assert "largest eigenvalues: " in said
    record = deltalens.load_study(tmp_path / "s")
    largest = record.facts["plane"]["found"]["eigenvalues"][0]
    frame = record.cells[record.cells["mark"] == "grid"].set_index(["a", "b"])["value"]
    reach = max(a for a, _ in frame.index)
    small = scan_near(three, tmp_path / "near", f"{-reach / 60}:{reach / 60}")
    low, middle, high = (small[a, 0.0] for a in sorted({a for a, _ in small.index}))
    curvature = (low - 2 * middle + high) / (reach / 60) ** 2
    assert curvature == pytest.approx(largest, rel=0.02)


def scan_near(three: Three, out: Path, span: str) -> pd.Series[float]:
    """The loss close by, in the same directions."""
    record = deltalens.scan_landscape(
        three.origin,
        out,
        plane="hessian",
        grid="3x3",
        span=span,
        data=[three.train],
        metrics=["loss"],
    )
    grid = record.cells[record.cells["mark"] == "grid"]
    return grid.set_index(["a", "b"])["value"]


def test_distance_from_the_origins_predictions_needs_no_data(three: Three, tmp_path: Path) -> None:
    succeeds(
        *("landscape", three.origin, three.b, "--metrics", "kl", "--grid", 3),
        *("--device", "cpu", "-o", tmp_path / "s"),
    )
    frame = deltalens.load_study(tmp_path / "s").cells
    assert set(zip(frame["data"], frame["metric"], strict=True)) == {("texts", "kl")}
    at_origin = frame[frame["mark"] == "ft"]["value"]
    assert float(at_origin.iloc[0]) == 0
    assert (frame[frame["mark"] != "ft"]["value"] > 0).all()


def broken() -> Callable[[Quadratic], dict[str, float]]:
    """NaN and infinities at some points."""
    calls = itertools.count(1)
    bad = {5: math.nan, 9: math.inf, 11: -math.inf}

    def metric(model: Quadratic) -> dict[str, float]:
        return {"loss": bad.get(next(calls), measured(model)["loss"])}

    return metric


def test_point_without_a_finite_loss_is_nan_in_the_table_a_gap_and_counted(tmp_path: Path) -> None:
    origin, b, c = quadratics(3)
    out = tmp_path / "s"
    record = scan(origin, out, others=[b, c], grid="5x6", metric=broken())
    assert record.cells["value"].isna().sum() == 3
    assert (out / "cells.csv").read_text().count(",nan,nan,0") == 3
    said = list(summarize_landscape(record).sentences())
    assert "3 points have no finite value: they are gaps in the picture" in said
    succeeds("plot", out)
    svg = (out / "landscape.svg").read_text()
    assert "no finite value" in svg
    whole = scan(origin, tmp_path / "whole", others=[b, c], grid="5x6")
    succeeds("plot", whole.path)
    assert "no finite value" not in (whole.path / "landscape.svg").read_text()
    # Resumed, a gap counts as measured.
    again = scan(origin, out, others=[b, c], grid="5x6", metric=broken())
    assert table(out) == table(again.path)
    assert again.cells["value"].isna().sum() == 3


def test_whole_plane_of_nan_is_drawn_and_summarized(tmp_path: Path) -> None:
    origin, b, c = quadratics(3)
    scan(origin, tmp_path / "s", others=[b, c], grid="3x3", metric=lambda model: {"loss": math.nan})
    succeeds("plot", tmp_path / "s")
    summary = summarize_landscape(load_landscape(tmp_path / "s"))
    assert summary.gaps == 12
    assert summary.data[0].best_mark is None
    assert list(summary.sentences())


@pytest.mark.parametrize("cells", [4, 8, 20])
def test_unfinished_landscape_can_be_drawn_and_summarized(tmp_path: Path, cells: int) -> None:
    class Enough(Exception):
        pass

    origin, b, c = quadratics(3)
    left = [cells]

    def stop(folder: Path, cell: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Enough

    with pytest.raises(Enough):
        scan(origin, tmp_path / "s", others=[b, c], grid="9x7", watch=StudyWatch(on_cell=stop))
    succeeds("plot", tmp_path / "s")
    said = list(summarize_landscape(load_landscape(tmp_path / "s")).sentences())
    assert f"{cells} of 66 points are measured" in said


def test_first_picture_is_there_before_the_last_point(
    three: Three, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalens.figures import landscape

    drawn: list[int] = []
    draw = landscape.draw

    def counting(folders: list[Path], *entry: object, **more: bool) -> list[Drawing]:
        cells = load_landscape(folders[0]).cells
        drawn.append(len(cells[cells["mark"] == "grid"]))
        return draw(folders, *entry, **more)

    monkeypatch.setattr(landscape, "draw", counting)
    succeeds(
        *("landscape", three.origin, *three.others, "--data", three.test, "--limit", 1),
        *("--grid", "9x9", "--metrics", "loss", "-q", "-o", tmp_path / "s"),
    )
    assert drawn == [9, 25, 81]


def test_figures_of_the_paper_draw_a_row_a_domain(study: tuple[Path, str], tmp_path: Path) -> None:
    six = draw_figure("mft-fig6", [study[0], study[0]], tmp_path)
    ten = draw_figure("mft-fig10", study[0], tmp_path)
    assert [file.name for file in (*six, *ten)] == [
        *("mft_fig6.png", "mft_fig6.svg", "mft_fig10.png", "mft_fig10.svg")
    ]
    svg = six[1].read_text()
    for text in ("FFT", "continued FFT", "MFT", "training data (train)", "test data (test)"):
        assert text in svg


def test_model_in_a_smaller_dtype_is_scanned_in_that_dtype(three: Three, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    def metric(model: torch.nn.Module) -> dict[str, float]:
        seen.update(parameter.dtype for parameter in model.parameters())
        return {"x": 1.0}

    for dtype in ("auto", "bfloat16"):
        deltalens.scan_landscape(
            three.origin,
            tmp_path / dtype,
            others=three.others,
            grid="2x2",
            dtype=dtype,
            metric=metric,
        )
    assert seen == {torch.float32, torch.bfloat16}
