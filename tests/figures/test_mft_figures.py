"""MFT's figures from studies' records: what is drawn where, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deltalens.errors import RecordError
from deltalens.figures import draw, draw_figure, draw_named, mft_layers
from tests.support.edits import edit
from tests.support.mft_studies import (
    COMPARED,
    DATA_RATIOS,
    RATIOS,
    dropped,
    layers,
    write_study,
)


def drawn(name: str, folders: Path | list[Path]) -> Figure:
    (drawing,) = draw_named(name, folders)
    return drawing.figure


def lines(axis: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axis.get_lines()
    }


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_visible()]


def test_steps_are_lines_over_means_with_the_fine_tune_as_their_start(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "comparison", COMPARED, measured_at=(50, 100))
    exact, loss = drawn("mft-fig2", folder).axes
    shown = lines(exact)
    # Each measurement lies 5 points below the next; the end is 74.
    # The fine-tune has 70, where MFT starts, and the base 10, where LoRA does.
    assert shown["MFT"][0] == [0, 50, 100]
    assert shown["MFT"][1] == pytest.approx([70, 64, 69])
    assert shown["LoRA"][1] == pytest.approx([10, 42, 47])
    assert shown["FFT"][1] == pytest.approx([70, 70])
    assert shown["random mask"][1] == pytest.approx([62, 62])
    assert lines(loss)["MFT"][1] == pytest.approx([0.3, 0.36, 0.31])
    star = [line for line in exact.get_lines() if line.get_marker() == "*"]
    assert [list(one.get_xydata()[0]) for one in star] == [pytest.approx([0, 70])]


def test_a_training_of_known_length_ends_with_what_was_measured_at_its_end(tmp_path: Path) -> None:
    figures = []
    for steps in (100, 130):
        folder = tmp_path / str(steps)
        write_study(folder, "comparison", COMPARED, measured_at=(50, 100), steps=steps)
        figures.append(drawn("mft-fig2", folder))
    short, long = (lines(figure.axes[0])["MFT"] for figure in figures)
    assert short[0] == [0, 50, 100]
    assert long == ([0, 50, 100, 130], pytest.approx([70, 64, 69, 74]))


def test_a_band_goes_from_the_lowest_seed_to_the_highest(tmp_path: Path) -> None:
    values = {s: v for s, v in RATIOS.items() if s[0] == "mft"} | {("mft", 0.1, 1): 0.5}
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", values)
    axis = drawn("mft-fig4", folder).axes[0]
    assert lines(axis)["MFT"][1][1] == pytest.approx(63)
    assert band_at(axis, 0.1) == pytest.approx([50, 76])


def test_of_one_seed_the_band_is_the_measurements_standard_error(tmp_path: Path) -> None:
    values = {s: v for s, v in RATIOS.items() if s[0] == "mft" and s[-1] == 0}
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", values)
    assert band_at(drawn("mft-fig4", folder).axes[0], 0.1) == pytest.approx([74, 78])


def band_at(axis: Any, x: float) -> list[float]:
    """The ends of an axis's only band."""
    (band,) = axis.collections
    points = band.get_paths()[0].vertices
    ys = points[np.isclose(points[:, 0], x)][:, 1]
    return [ys.min(), ys.max()]


def test_ratios_are_held_against_the_fine_tune_and_continued_training(tmp_path: Path) -> None:
    ratios = write_study(tmp_path / "a", "mask-ratio-sweep", RATIOS)
    masks = lines(drawn("mft-fig8", ratios).axes[0])
    assert masks["MFT"][0] == [0.02, 0.1, 0.2, 0.4]
    assert masks["MFT"][1] == pytest.approx([71, 75, 70, 59])
    assert masks["FFT"][1] == pytest.approx([70, 70])
    assert masks["continued FFT"][1] == pytest.approx([70, 70])
    shares = write_study(tmp_path / "b", "data-ratio-sweep", DATA_RATIOS)
    data = lines(drawn("mft-fig9", shares).axes[0])
    assert data["MFT"] == ([0.1, 0.5, 1.0], pytest.approx([70, 73, 76]))
    assert data["continued FFT"][1] == pytest.approx([65, 69, 71])
    assert data["FFT"][1] == pytest.approx([70, 70])


def test_a_group_is_a_step_over_its_blocks(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "layer-sweep", layers())
    figures = [drawn(name, folder) for name in ("mft-fig3", "mft-fig7")]
    small, large = (lines(figure.axes[0]) for figure in figures)
    assert {name for name in small if name.startswith("MFT")} == {"MFT, 1 block", "MFT, 2 blocks"}
    assert {name for name in large if name.startswith("MFT")} == {"MFT, 4 blocks"}
    # A step, and its middle: the only point with a mark.
    # 0.76 - 0.08 + 0.01 for blocks 0-3, and 0.06 less from block 4 on.
    assert large["MFT, 4 blocks"] == (
        [-0.5, 1.5, 3.5, 3.5, 5.5, 7.5],
        pytest.approx([69, 69, 69, 63, 63, 63]),
    )
    (path,) = [line for line in figures[1].axes[0].get_lines() if "MFT" in line.get_label()]
    assert path.get_markevery() == (1, 3)
    assert large["FFT"][1] == pytest.approx([70, 70])
    assert large["continued FFT"][1] == pytest.approx([69, 69])


def test_a_group_that_is_not_finished_leaves_a_gap(tmp_path: Path) -> None:
    values = {s: v for s, v in layers(8, (2,)).items() if s[2] != "2-3"}
    folder = write_study(tmp_path / "s", "layer-sweep", values)
    figure = drawn("mft-fig3", folder)
    (path,) = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) > 4]
    assert [x for x in path.get_xdata() if np.isnan(x)] != []
    assert 2.0 not in path.get_xdata()
    assert list(path.get_xdata()[-6:]) == [3.5, 4.5, 5.5, 5.5, 6.5, 7.5]
    assert list(path.get_xdata()[1::3])[-1] == 6.5  # Marks stay in the middle.


def test_deltas_that_were_dropped_or_kept_differ_in_color_marker_and_line(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "layer-sweep", dropped())
    axis = drawn("mft-fig3", folder).axes[0]
    names = lines(axis)
    assert {"base", "FFT", "dropped: 1 block", "kept: 2 blocks"} <= {*names}
    assert names["base"][1] == pytest.approx([10, 10])
    swept = [line for line in axis.get_lines() if ": " in line.get_label()]
    assert len(swept) == 4
    for look in (Line2D.get_color, Line2D.get_marker):
        assert len({look(line) for line in swept}) == 4
    for line in swept:
        kept = line.get_label().startswith("kept")
        assert (line.get_linestyle() == "--") == kept
        assert (line.get_markerfacecolor() == "white") == kept


def test_several_domains_share_a_figure_and_each_panel_says_which(tmp_path: Path) -> None:
    folders = [
        write_study(
            tmp_path / domain,
            "data-ratio-sweep",
            DATA_RATIOS,
            trained_on=f"{domain}_train",
            sets=(f"{domain}_test",),
        )
        for domain in ("maths", "code")
    ]
    assert titles(drawn("mft-fig5", folders)) == [
        *["maths_train → maths_test"] * 2,
        *["code_train → code_test"] * 2,
    ]


@pytest.mark.parametrize("long", [False, True])
def test_no_word_is_cut_off(tmp_path: Path, long: bool) -> None:
    name = "a_data_set_with_a_name_that_nobody_would_type" if long else "maths"
    folders = [
        write_study(
            tmp_path / str(place),
            "layer-sweep",
            layers(32, (1, 2, 4, 8)),
            trained_on=f"{name}_train_{place}",
            sets=(f"{name}_test_{place}",),
        )
        for place in range(2)
    ]
    figure = drawn("mft-fig3", folders)
    figure.canvas.draw()
    page = figure.bbox
    texts = [*figure.texts, *figure.legends[0].get_texts(), figure._supxlabel]  # type: ignore[attr-defined]
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 12
    assert all(box.x0 >= page.x0 and box.x1 <= page.x1 for box in boxes)
    assert all(box.y0 >= page.y0 and box.y1 <= page.y1 for box in boxes)
    heads = [axis.title.get_window_extent() for axis in figure.axes]
    pairs = [(one, other) for place, one in enumerate(heads) for other in heads[:place]]
    assert not any(one.overlaps(other) for one, other in pairs)


def test_plot_picks_the_figures_of_a_study(tmp_path: Path) -> None:
    sweep = write_study(tmp_path / "ratios", "mask-ratio-sweep", RATIOS)
    assert {path.name for path in draw(sweep)} == {"mft_fig4.png", "mft_fig4.svg"}
    share = write_study(tmp_path / "data", "data-ratio-sweep", DATA_RATIOS)
    assert {path.stem for path in draw(share)} == {"mft_fig5"}
    both = write_study(tmp_path / "layers", "layer-sweep", layers())
    files = draw(both)
    assert {path.stem for path in files} == {"mft_fig3", "mft_fig7"}
    before = [path.read_bytes() for path in files]
    draw(both)
    assert [path.read_bytes() for path in files] == before
    small = write_study(tmp_path / "small", "layer-sweep", layers(8, (1,)))
    assert {path.stem for path in draw(small)} == {"mft_fig3"}
    large = write_study(tmp_path / "large", "layer-sweep", layers(8, (4,)))
    assert {path.stem for path in draw(large)} == {"mft_fig7"}


def test_wrong_empty_or_unfit_studies_are_refused(tmp_path: Path) -> None:
    other = write_study(tmp_path / "other", "comparison", COMPARED)
    cases = [
        ("mft-fig3", "layer-sweep"),
        ("mft-fig7", "layer-sweep"),
        ("mft-fig4", "mask-ratio-sweep"),
        ("mft-fig8", "mask-ratio-sweep"),
        ("mft-fig5", "data-ratio-sweep"),
        ("mft-fig9", "data-ratio-sweep"),
    ]
    for name, kind in cases:
        empty = write_study(tmp_path / name / kind, kind, {})
        for folder in (other, empty):
            with pytest.raises(RecordError, match=f"no {kind} with finished cells"):
                draw_figure(name, folder)
    with pytest.raises(RecordError, match="nothing was measured during training"):
        draw_figure("mft-fig2", other)
    small = write_study(tmp_path / "small", "layer-sweep", layers(8, (1,)))
    with pytest.raises(
        RecordError, match=r"no groups of this figure's sizes; sizes that were measured: 1"
    ):
        draw_figure("mft-fig7", small)


def test_figures_of_masks_need_no_torch(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "comparison", COMPARED, measured_at=(5, 10))
    program = f"""
import sys
sys.modules["torch"] = None  # from here on, importing it fails
from deltalens.figures import draw
print(len(draw({str(folder)!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "6"


def test_half_of_the_model_is_what_the_study_says_or_what_its_groups_reach(tmp_path: Path) -> None:
    first = {s: v for s, v in layers(8, (2,)).items() if s[2] in ("", "0-1")}
    folder = write_study(tmp_path / "s", "layer-sweep", first)
    assert mft_layers.group_sizes([folder]) == ([], [2])
    edit(folder / "study.json", lambda study: study["facts"].update(blocks=8))
    assert mft_layers.group_sizes([folder]) == ([2], [])
    spec = {"method": "drop", "groups": [2], "data": []}
    edit(folder / "study.json", lambda study: study["asked"].update(spec))
    part = {"entries": 1, "squares": 1.0}
    facts = {"blocks": {"0": part, "7": part}, "outside": part}
    edit(folder / "study.json", lambda study: study.update(facts=facts))
    assert mft_layers.group_sizes([folder]) == ([2], [])


def test_a_study_without_training_names_what_it_is_measured_on(tmp_path: Path) -> None:
    held = [["maths_test", 300, "digest"]]
    spec = {"method": "drop", "groups": [1, 2], "data": held, "eval_data": None}
    part = {"entries": 1, "squares": 1.0}
    facts = {"blocks": {str(block): part for block in range(8)}, "outside": part}
    folder = write_study(tmp_path / "s", "layer-sweep", dropped(), facts=facts, **spec)
    assert titles(drawn("mft-fig3", folder)) == ["maths_test"] * 2
