"""Every figure has a name: what draws it, which are twins, and how it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deltalens.catalog.plugins import load_code
from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError, RecordError
from deltalens.figures import FIGURES, draw_figure, draw_named, drawings
from deltalens.figures.speft_studies import DENSITY_SWEEP, MASK_SWEEP
from tests.support.gmt_studies import EXACT, write_sweep
from tests.support.mft_studies import COMPARED, DATA_RATIOS, RATIOS, write_study

TWINS = {
    "mft-fig8": "mft-fig4",
    "mft-fig9": "mft-fig5",
    "mft-fig10": "mft-fig6",
    "mft-tab2": "mft-tab1",
    "mft-tab6": "mft-tab5",
    **{f"speft-tab{number}": "speft-tab1" for number in (2, 3, 9, 10, 11, 12)},
    **{f"speft-tab{number}": "speft-tab7" for number in (5, 6, 8)},
}


def test_every_name_has_code_and_says_what_it_shows_and_needs() -> None:
    sources = {*STUDIES, MASK_SWEEP, DENSITY_SWEEP, "run", "training", ""}
    for name, entry in FIGURES.items():
        assert name == entry.name
        assert callable(load_code(entry.code))
        assert entry.source in sources
        assert 10 < len(entry.shows) < 80
        assert bool(entry.number) <= bool(entry.paper)
    titles = [entry.title for entry in FIGURES.values() if entry.number.startswith("Figure")]
    assert len(titles) == len({*titles})
    assert FIGURES["mft-tab2"].title == "MFT, Table 2: methods on the data of their domain"


def test_twins_share_one_module_and_nothing_else_does() -> None:
    assert {name: entry.same_as for name, entry in FIGURES.items() if entry.same_as} == TWINS
    for name, original in TWINS.items():
        assert FIGURES[name].code == FIGURES[original].code
        assert FIGURES[name].source == FIGURES[original].source
    distinct = [entry.code for entry in FIGURES.values() if not entry.same_as]
    assert len(distinct) == len({*distinct})


def test_a_twin_is_the_same_picture_under_its_own_name(tmp_path: Path) -> None:
    ratios = write_study(tmp_path / "ratios", "mask-ratio-sweep", RATIOS)
    shares = write_study(tmp_path / "shares", "data-ratio-sweep", DATA_RATIOS)
    for folder, name, twin in ((ratios, "fig4", "fig8"), (shares, "fig5", "fig9")):
        (picture, _), (other, _) = (draw_figure(f"mft-{one}", folder) for one in (name, twin))
        assert (picture.name, other.name) == (f"mft_{name}.png", f"mft_{twin}.png")
        assert picture.read_bytes() == other.read_bytes()


def test_a_twin_table_has_its_own_number_and_the_papers_own_rows(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "comparison", COMPARED)
    texts = []
    for number in (1, 2):
        draw_figure(f"mft-tab{number}", folder, paper=True)
        texts.append((folder / f"mft_tab{number}.md").read_text())
        assert texts[-1].startswith(f"# MFT, Table {number}: ")
    ours, papers = zip(*(text.split("**The paper", 1) for text in texts), strict=True)
    assert ours[0].split("\n", 1)[1] == ours[1].split("\n", 1)[1]
    assert papers[0] != papers[1]


def test_figures_are_saved_where_they_are_wanted(tmp_path: Path) -> None:
    first = write_study(tmp_path / "a", "mask-ratio-sweep", RATIOS)
    second = write_study(tmp_path / "b", "mask-ratio-sweep", RATIOS)
    assert {file.parent for file in draw_figure("mft-fig4", [second, str(first)])} == {second}
    out = tmp_path / "out"
    out.mkdir()
    files = draw_figure("mft-fig4", str(first), str(out))
    assert files == [out / "mft_fig4.png", out / "mft_fig4.svg"]
    assert not [*first.glob("mft_*")]


def test_options_reach_the_figures_that_take_them(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", EXACT)
    draw_figure("gmt-tab1", sweep, ratio=0.9)
    assert (
        "All methods are shown at mask ratio 0.9, which was given"
        in (sweep / "gmt_tab1.md").read_text()
    )
    upper = write_study(tmp_path / "upper", "comparison", COMPARED)
    lower = write_study(tmp_path / "lower", "comparison", COMPARED)
    draw_figure("mft-tab2", upper, mixed=str(lower))
    assert "This study: mixed-domain FFT" in (upper / "mft_tab2.md").read_text()


def test_what_cannot_be_drawn_is_refused_by_name(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", EXACT)
    for name, said in (
        ("mft_fig8", "no figure is called 'mft_fig8'; did you mean mft-fig8"),
        ("?", "choose from gmt-fig1, gmt-fig2"),
    ):
        with pytest.raises(DeltaLensError, match=said):
            draw_figure(name, sweep)
    with pytest.raises(DeltaLensError, match="is drawn from a single folder; 2 were named"):
        draw_figure("anatomy", [sweep, sweep])
    with pytest.raises(DeltaLensError, match="gmt-fig2: name a folder"):
        draw_figure("gmt-fig2", [])
    with pytest.raises(DeltaLensError, match="gmt-fig2 takes no ratio"):
        draw_figure("gmt-fig2", sweep, ratio=0.9)
    with pytest.raises(DeltaLensError, match="gmt-tab1 takes no mixed"):
        draw_figure("gmt-tab1", sweep, mixed=[sweep])
    with pytest.raises(RecordError, match="no comparison"):
        draw_figure("mft-tab1", sweep)


def test_a_drawing_is_a_figure_that_is_saved_nowhere(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT)
    drawn = drawings(folder)
    assert [drawing.name for drawing in drawn] == ["gmt_fig2", "gmt_tab1", "gmt_tab4"]
    assert repr(drawn[1]) == "Drawing('gmt_tab1', csv, md, tex, png, svg, pdf)"
    assert drawn[1].texts["md"].startswith("# GMT, Table 1")
    assert not [*folder.glob("gmt_*")]
    assert drawn[0].figure.axes[0].get_xlabel() == "mask ratio\n(fraction masked out)"


def test_drawing_leaves_the_callers_matplotlib_alone(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS)
    program = f"""
import sys
import matplotlib
matplotlib.use("svg")
before = dict(matplotlib.rcParams)
from deltalens.figures import draw, draw_named
draw({str(folder)!r}), draw_named("mft-fig8", {str(folder)!r})
assert matplotlib.get_backend() == "svg"
assert dict(matplotlib.rcParams) == before
assert "matplotlib.pyplot" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_landscape_along_a_line_is_no_figure_of_a_plane(tmp_path: Path) -> None:
    from tests.figures.test_pictures import mark, write_landscape

    marks = [mark("ft", "origin", 0.0), mark("other", "b", 1.5)]
    grid = {(a, 0.0, "grid"): 2.0 for a in (-1.0, 0.0, 1.0, 2.0)}
    write_landscape(tmp_path, "line", marks, grid)
    with pytest.raises(RecordError, match="mft-fig10 needs a landscape through three models"):
        draw_named("mft-fig10", tmp_path)
