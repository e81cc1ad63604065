"""How pictures are drawn: titles, sizes, dots per inch, PDF, and the paper's rows in tables."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

import deltalens
from deltalens.cli.main import app
from deltalens.errors import DeltaLensError
from deltalens.figures import draw, draw_figure, draw_for, drawings
from deltalens.figures.style import LEGEND_ABOVE, columns_for, drawn_for, drawn_now, read_size
from tests.cli.test_monitor import train
from tests.figures.test_every_figure import TABLES_DRAWN
from tests.figures.test_training_picture import step, write
from tests.reports import test_drop_summary as drops
from tests.support.edits import edit
from tests.support.gmt_studies import EXACT, write_sweep
from tests.support.mft_studies import COMPARED, RATIOS, write_study


def title(figure: Figure) -> str:
    """What stands on top of a figure."""
    above = [legend for legend in figure.legends if legend.get_gid() == LEGEND_ABOVE]
    return str(above[0].get_title().get_text() if above else figure.get_suptitle())


def drop_study(folder: Path, **facts: Any) -> Path:
    folder.mkdir()
    drops.write(folder, drops.MATHS, drops.RATES, {})
    edit(folder / "study.json", lambda study: study["facts"].update(facts))
    return folder


def typed(*words: object) -> str:
    said = CliRunner().invoke(app, [str(word) for word in words])
    assert said.exit_code == 0, said.output
    return said.output


def test_pictures_beside_a_study_name_its_models_and_data(tmp_path: Path) -> None:
    folder = drop_study(tmp_path / "s", ft="/models/tuned", base="/models/raw")
    (drawing,) = drawings(folder)
    assert title(drawing.figure).startswith("tuned against raw")
    draw(folder)
    assert "tuned against raw" in (folder / "gmt_fig3.svg").read_text()
    sweep = write_sweep(tmp_path / "t", EXACT, model="small-1B", data=["maths_train", 9, "d"])
    assert title(drawings(sweep)[0].figure) == "small-1B, maths_train → maths"


def test_several_studies_are_named_by_their_models_or_else_their_data(tmp_path: Path) -> None:
    for model, name in (("small-1B", "small-1B"), ("", "maths_train → maths; code_train → code")):
        folders = [
            write_sweep(
                tmp_path / f"{data}{model}",
                EXACT,
                sets=(data,),
                model=model,
                data=[f"{data}_train", 9, "d"],
            )
            for data in ("maths", "code")
        ]
        (drawing,) = draw_for("gmt-fig2", folders, titles="on")
        assert title(drawing.figure) == name


def test_titles_are_on_slides_and_off_paper_unless_asked_for(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "t", EXACT, model="small-1B")
    shown = {
        (medium, titles): title(draw_for("gmt-fig2", sweep, medium=medium, titles=titles)[0].figure)
        for medium in ("paper", "slides")
        for titles in ("auto", "on", "off")
    }
    on = {key for key, value in shown.items() if value.startswith("small-1B")}
    assert on == {("slides", "auto"), ("slides", "on"), ("paper", "on")}
    assert {value for key, value in shown.items() if key not in on} == {""}
    with pytest.raises(DeltaLensError, match="titles 'no': choose from auto, on, off"):
        draw_for("gmt-fig2", sweep, titles="no")  # type: ignore[arg-type]
    assert not drawn_now().titles


def test_a_run_is_named_by_the_training_that_it_watched(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", [step(1)])
    train(folder / "run")
    (first, *_) = deltalens.load_run(folder / "run").figures().values()
    assert title(first) == "small, sft, maths_train → maths"
    typed("monitor", folder)
    assert "small, sft, maths_train" in (folder / "run" / "coverage.svg").read_text()
    alone = train(tmp_path / "alone")
    (first, *_) = deltalens.load_run(alone).figures().values()
    assert title(first) == "alone"


def test_a_title_lies_above_the_legend_and_within_the_picture(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    for shape in (None, "6.8x4"):
        (drawing,) = draw_for("mft-fig4", folder, titles="on", size=shape)
        figure = drawing.figure
        figure.canvas.draw()
        (legend,) = figure.legends
        head = legend.get_title().get_window_extent()
        assert all(head.y0 >= text.get_window_extent().y1 for text in legend.get_texts())
        assert head.y1 <= figure.bbox.y1
        panels = [axis.get_tightbbox() for axis in figure.axes]
        assert not any(legend.get_window_extent().overlaps(box) for box in panels)


def test_a_hostile_or_long_name_is_shown_as_it_is_and_cut(tmp_path: Path) -> None:
    names = {"ft": "/m/a$x_{1}$\nb", "base": f"/m/{'n' * 300}"}
    (drawing,) = drawings(drop_study(tmp_path / "s", **names))
    shown = title(drawing.figure)
    assert shown.startswith("a$x_{1}$\\nb against n")
    assert "…" in shown
    assert len(shown) < 90
    drawing.figure.canvas.draw()


def png_size(file: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", file.read_bytes()[16:24])
    return width, height


@pytest.mark.parametrize(
    ("size", "dpi", "pixels"), [("5x4", 100, (500, 400)), ("6.8x3.5", 200, (1360, 700))]
)
def test_a_picture_is_exactly_as_large_as_asked_for(
    tmp_path: Path, size: str, dpi: int, pixels: tuple[int, int]
) -> None:
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    out = tmp_path / "a.png"
    for titles in ("on", "off"):
        typed(
            "figure",
            "mft-fig4",
            folder,
            "-o",
            out,
            "--size",
            size,
            "--dpi",
            dpi,
            "--titles",
            titles,
        )
        assert png_size(out) == pixels


def test_a_narrow_picture_has_its_panels_below_each_other(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    (drawing,) = draw_for("mft-fig4", folder, size="3.3")
    figure = drawing.figure
    assert figure.get_figwidth() == pytest.approx(3.3)
    assert {axis.get_subplotspec().colspan.start for axis in figure.axes} == {0}
    assert columns_for(4) == 2
    with drawn_for(size=read_size("3.3")):
        assert columns_for(4) == 1


def test_a_size_without_room_or_of_a_table_is_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    with pytest.raises(DeltaLensError, match=r"mft_fig4: has no room in 2 x 1\.5 inches"):
        draw_figure("mft-fig4", folder, tmp_path / "a.png", size="2x1.5")
    assert not (tmp_path / "a.png").exists()
    sweep = write_sweep(tmp_path / "t", EXACT)
    for name, studies in (("gmt-tab1", [sweep]), ("gmt-fig1", [])):
        with pytest.raises(DeltaLensError, match="as large as its words need"):
            draw_figure(name, studies, tmp_path / "a.png", size="5x4")


@pytest.mark.parametrize("size", ["", "0", "5x", "x5", "0.5", "5x41", "1e2", "nan", "5X4", "-5"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(DeltaLensError, match="WIDTH or WIDTHxHEIGHT in inches"):
        read_size(size)


@pytest.mark.parametrize("dpi", [0, 19, 2401])
def test_dots_out_of_bounds_are_refused(tmp_path: Path, dpi: int) -> None:
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    with pytest.raises(DeltaLensError, match=f"dpi {dpi}: from 20 to 2400"):
        draw_figure("mft-fig4", folder, dpi=dpi)


def test_pdf_is_written_beside_the_others_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    typed("plot", folder)
    assert not [*folder.glob("*.pdf")]
    typed("plot", folder, "--pdf")
    assert (folder / "mft_fig4.pdf").read_bytes().startswith(b"%PDF")
    typed("figure", "mft-fig8", folder, "--pdf")
    assert {path.suffix for path in folder.glob("mft_fig8.*")} == {".png", ".svg", ".pdf"}


def test_tables_on_slides_are_drawn_as_on_paper_with_more_dots(tmp_path: Path) -> None:
    """Their words stand where they fit; a narrower page would lay them over each other."""
    sweep = write_sweep(tmp_path / "t", EXACT)
    paper, slides = (
        draw_for("gmt-tab1", sweep, medium=medium, titles="off")[0].figure
        for medium in ("paper", "slides")
    )
    assert [*paper.get_size_inches()] == [*slides.get_size_inches()]
    assert slides.dpi > paper.dpi


def test_the_papers_rows_are_folded_away_unless_they_are_asked_for(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "t", EXACT)
    for words, shown in (
        (("plot", sweep), False),
        (("plot", sweep, "--paper"), True),
        (("plot", sweep), False),
        (("figure", "gmt-tab1", sweep), False),
        (("figure", "gmt-tab1", sweep, "--paper"), True),
    ):
        typed(*words)
        text = (sweep / "gmt_tab1.md").read_text()
        assert ("**The paper: " in text) == shown
        assert ("deepseek-coder" in text.lower()) == shown
        assert ("Gradient-Mask Tuning (arXiv" in text) == shown
        assert ("`deltalens plot --paper` shows them" in text.replace("\\", "")) != shown
        assert ("DEEPSEEK" in (sweep / "gmt_tab1.csv").read_text()) == shown
        assert "**This study: maths**" in text


@pytest.mark.parametrize("name", [*TABLES_DRAWN])
def test_a_folded_table_keeps_every_row_of_the_study(tmp_path: Path, name: str) -> None:
    folder = TABLES_DRAWN[name](tmp_path / "study")
    (whole,) = draw_for(name, folder, paper=True)
    (folded,) = draw_for(name, folder)
    own, kept = (
        [table for table in drawn.tables if not table.title.startswith(others)]
        for drawn in (whole, folded)
        for others in [("The paper", "Beside the paper")]
    )
    assert [table.title for table in kept] == [table.title for table in own]
    assert [table.rows for table in kept] == [table.rows for table in own]
    assert kept


def test_a_table_names_its_models_where_pictures_have_titles(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "t", EXACT, model="small-1B", data=["maths_train", 9, "d"])
    name = "small-1B, maths_train → maths"
    for titles in ("on", "off", "auto"):
        (drawing,) = draw_for("gmt-tab1", sweep, titles=titles)  # type: ignore[arg-type]
        words = [text.get_text() for text in drawing.figure.axes[0].texts]
        assert (name in words) == (titles == "on")
        assert (f"\n\n{name}\n\n" in drawing.texts["md"].replace("\\", "")) == (titles == "on")
        # A float of LaTeX has a caption, whatever stands in the picture.
        assert "This study: maths (small-1B, " in drawing.texts["tex"]
        if titles == "on":
            assert words[0] == name


def test_a_long_name_on_a_table_is_cut_in_the_middle_and_runs_over_nothing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "t", EXACT, model="m" * 400 + "-7B", data=["rows", 9, "d"])
    (drawing,) = draw_for("gmt-tab1", sweep, titles="on")
    figure = drawing.figure
    figure.canvas.draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    first = texts[0].get_text()
    assert "…" in first
    assert first.endswith("-7B, rows → maths")
    box, *others = (text.get_window_extent() for text in texts)
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(other) for other in others)


BENCHMARK = ("gsm8k_test", "math_test")


@pytest.mark.parametrize(
    ("model", "foreign"),
    [("Meta-Llama-3-8B", False), ("small-1B", True), ("", True)],
)
def test_rows_beside_other_models_than_the_studys_are_folded_away(
    tmp_path: Path, model: str, foreign: bool
) -> None:
    sweep = write_sweep(tmp_path / "t", EXACT, sets=BENCHMARK, model=model)
    (shown,) = draw_for("gmt-tab1", sweep)
    beside = [table.title for table in shown.tables if table.title.startswith("Beside")]
    assert beside == ([] if foreign else ["Beside the paper: LLAMA3-8B, math reasoning"])
    assert ("- Beside the paper" in shown.texts["md"]) != foreign
    assert "No data of this study" not in shown.texts["md"]
    assert "MISTRAL" not in "".join(shown.texts.values())
    (whole,) = draw_for("gmt-tab1", sweep, paper=True)
    assert "Beside the paper: LLAMA3-8B, math reasoning" in {one.title for one in whole.tables}
    assert "- Beside the paper" in whole.texts["md"]


@pytest.mark.parametrize(
    ("name", "model", "shown"),
    [
        ("mft-tab1", "Llama-2-7b-hf", True),
        ("mft-tab2", "Llama-2-7b-hf", False),
        ("mft-tab2", "Llama-3.1-8B", True),
        ("mft-tab5", "small-1B", False),
    ],
)
def test_tables_of_one_model_stand_beside_studies_of_that_model(
    tmp_path: Path, name: str, model: str, shown: bool
) -> None:
    facts = {"base": f"/models/{model}"}
    folder = write_study(tmp_path / "s", "comparison", COMPARED, sets=("gsm8k_test",), facts=facts)
    (drawing,) = draw_for(name, folder)
    assert any(table.title.startswith("Beside") for table in drawing.tables) == shown
