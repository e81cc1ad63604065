"""GMT's tables from a study's records: their numbers, what is missing, and what is refused."""

from __future__ import annotations

import csv
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltalens.cli.main import app
from deltalens.errors import DeltaLensError
from deltalens.figures import draw, draw_named, table_picture
from deltalens.figures.tables import Block, Entry, TableFigure, mark_best
from deltalens.io.records import load_study
from deltalens.reports.trainings import summarize_sweep
from tests.support.drawn_tables import Row, draw_whole, entry
from tests.support.gmt_studies import EXACT, Point, write_efficiency, write_sweep


def rows_of(folder: Path, name: str, source: str = "study") -> list[Row]:
    """The cells of the study's own blocks, of the paper's, or of those that set both side by side
    (`beside`)."""
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return [
            row
            for row in csv.DictReader(stream)
            if ("beside" if row["block"].startswith("Beside") else row["source"]) == source
        ]


def only(values: Mapping[Point, float], *seeds: int) -> dict[Point, float]:
    return {point: value for point, value in values.items() if point[2] in seeds}


def test_a_cell_is_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT)
    draw_whole("gmt-tab1", folder)
    rows = rows_of(folder, "gmt_tab1")
    sft = entry(rows, "exact match", method="SFT")
    assert float(sft["value"]) == pytest.approx(100 * statistics.mean([0.5, 0.7]))
    assert float(sft["deviation"]) == pytest.approx(100 * statistics.stdev([0.5, 0.7]))
    assert (sft["seeds"], sft["text"]) == ("2", "60.0 ± 14.1")
    loss = entry(rows, "loss", method="GMT")
    assert loss["text"] == "0.3000 ± 0.1556"
    assert {row["column"] for row in rows} == {
        "exact match (%), n = 100",
        "loss (nats per target token), n = 100",
        "seeds",
    }


def test_plain_training_by_preferences_is_called_dpo(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT, objective="dpo")
    draw_whole("gmt-tab1", folder)
    methods = {row["method"] for row in rows_of(folder, "gmt_tab1")}
    assert {"DPO", "GMT"} <= methods
    assert "SFT" not in methods
    own, _, paper = (folder / "gmt_tab1.md").read_text().partition("The paper")
    assert paper
    assert "SFT" not in own
    summary = summarize_sweep(load_study(folder))
    said = " ".join(summary.sentences())
    assert "% of dpo" in said
    assert "sft" not in said
    assert all("sft" not in table.columns for table in summary.tables())


def test_the_best_is_marked_whichever_way_is_good(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT)
    draw_whole("gmt-tab1", folder)
    best = [
        (row["method"], row["column"][:4])
        for row in rows_of(folder, "gmt_tab1")
        if row["best"] == "1"
    ]
    assert best == [("GMT", "exac"), ("GMT", "loss")]
    assert "| GMT | 0.2 | **70.0 ± 15.6** |" in (folder / "gmt_tab1.md").read_text()


@pytest.mark.parametrize(
    ("values", "marked"),
    [
        ((0.0, 0.0, 0.0), ()),
        ((0.501, 0.502, math.nan), ()),  # equal as shown
        ((0.5, 0.5, 0.1), (0, 1)),
        ((0.5,), ()),
    ],
)
def test_none_is_best_where_all_look_equal(
    values: tuple[float, ...], marked: tuple[int, ...]
) -> None:
    entries = mark_best([Entry(f"{value:.1f}", value) for value in values], 1, "higher")
    assert tuple(place for place, entry in enumerate(entries) if entry.best) == marked


def test_a_method_stands_at_its_best_ratio_or_at_the_one_named(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT)
    draw_whole("gmt-tab1", folder)
    assert entry(rows_of(folder, "gmt_tab1"), "exact", method="GMT")["mask ratio"] == "0.2"
    assert "chosen on the very data" in (folder / "gmt_tab1.md").read_text()
    draw_whole("gmt-tab1", folder, ratio=0.9)
    named = entry(rows_of(folder, "gmt_tab1"), "exact", method="GMT")
    assert (named["mask ratio"], named["text"]) == ("0.9", "57.0 ± 14.1")
    assert "chose nothing" in (folder / "gmt_tab1.md").read_text()
    with pytest.raises(DeltaLensError, match=r"no mask ratio 0\.3; it has 0, 0\.2, 0\.5, 0\.9"):
        draw_whole("gmt-tab1", folder, ratio=0.3)


def test_plain_fine_tuning_does_not_pass_for_a_method(tmp_path: Path) -> None:
    """Ratio 0 is SFT: it is best here, and GMT is shown at a ratio of its own all the same."""
    values = {point: 0.9 if point[1] == 0 else value for point, value in EXACT.items()}
    folder = write_sweep(tmp_path / "s", values)
    draw_whole("gmt-tab1", folder)
    assert entry(rows_of(folder, "gmt_tab1"), "exact", method="GMT")["mask ratio"] == "0.2"


def test_with_one_seed_there_is_no_deviation(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", only(EXACT, 0))
    draw_whole("gmt-tab1", folder)
    sft = entry(rows_of(folder, "gmt_tab1"), "exact match", method="SFT")
    assert (sft["text"], sft["deviation"], sft["seeds"]) == ("50.0", "", "1")


def test_a_study_that_is_not_finished_leaves_gaps_and_says_so(tmp_path: Path) -> None:
    done = {point: EXACT[point] for point in list(EXACT)[:4]}  # sft, and gmt at ratio 0
    folder = write_sweep(tmp_path / "s", done)
    draw_whole("gmt-tab1", folder)
    rows = rows_of(folder, "gmt_tab1")
    for method in ("GMT", "HFT"):
        assert entry(rows, "exact match", method=method)["text"] == "–"
        assert entry(rows, "seeds", method=method)["text"] == "0"
    assert "not finished: 4 of 12 cells" in (folder / "gmt_tab1.md").read_text()


def test_a_ratio_with_a_single_lucky_seed_does_not_compete(tmp_path: Path) -> None:
    values = {point: value for point, value in EXACT.items() if point[0] == "sft" or point[1] < 0.5}
    folder = write_sweep(tmp_path / "s", {**values, ("gmt", 0.5, 0): 0.99})
    draw_whole("gmt-tab1", folder)
    draw_whole("gmt-tab4", folder)
    assert entry(rows_of(folder, "gmt_tab1"), "exact", method="GMT")["mask ratio"] == "0.2"
    assert (
        entry(rows_of(folder, "gmt_tab4"), "best", method="GMT", metric="exact match (%)")["text"]
        == "20"
    )


def test_a_training_that_diverged_is_not_left_out_of_the_mean(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {**EXACT, ("sft", 0.0, 1): float("nan")})
    draw_whole("gmt-tab1", folder)
    sft = entry(rows_of(folder, "gmt_tab1"), "exact match", method="SFT")
    assert (sft["text"], sft["best"]) == ("nan", "0")


def test_the_average_over_data_sets_is_taken_seed_by_seed(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT, sets=("maths", "code"))
    names = {path.stem for path in draw(folder)}
    assert names == {"gmt_fig2", "gmt_tab1", "gmt_tab2", "gmt_tab4"}
    rows = [row for row in rows_of(folder, "gmt_tab2") if "exact" in row["block"]]
    assert [row["column"] for row in rows[:4]] == [
        "maths, n = 100",
        "code, n = 100",
        "average",
        "seeds",
    ]
    average = entry(rows, "average", method="GMT")
    assert float(average["value"]) == pytest.approx(100 * (0.54 + 0.76) / 2)
    assert float(average["deviation"]) == pytest.approx(100 * statistics.stdev([0.54, 0.76]))


def test_one_data_set_has_no_second_table(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT)
    assert "gmt_tab2" not in {path.stem for path in draw(folder)}
    with pytest.raises(DeltaLensError, match="several data sets"):
        draw_whole("gmt-tab2", folder)


def test_best_ratios_and_those_within_one_standard_error(tmp_path: Path) -> None:
    """At 20 %: mean 70, deviation 15.6, standard error 11. 60 (0) and 65 (50 %) lie within."""
    folder = write_sweep(tmp_path / "s", EXACT)
    draw_whole("gmt-tab4", folder)
    rows = [row for row in rows_of(folder, "gmt_tab4") if row["metric"] == "exact match (%)"]
    assert entry(rows, "best", method="GMT")["text"] == "20"
    assert entry(rows, "its value", method="GMT")["text"] == "70.0 ± 15.6"
    assert entry(rows, "within", method="GMT")["text"] == "0, 20, 50"
    assert {row["method"] for row in rows} == {"GMT"}
    printed = rows_of(folder, "gmt_tab4", "paper")
    assert [row["text"] for row in printed] == ["20", "30", "10", "30", "40", "10"]


def test_with_one_seed_the_standard_error_is_the_measurements(tmp_path: Path) -> None:
    """0.59 ± 0.04 at 20 %: 0.54 is too far, and 0.57 is not."""
    for other, near in ((0.54, "20"), (0.57, "20, 50")):
        folder = tmp_path / near
        write_sweep(folder, {**only(EXACT, 0), ("gmt", 0.5, 0): other})
        draw_whole("gmt-tab4", folder)
        assert (
            entry(rows_of(folder, "gmt_tab4"), "within", metric="exact match (%)")["text"] == near
        )


def test_the_best_ratio_stands_beside_that_of_the_domain(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT, sets=("gsm8k_test",), model="Mistral-7B-v0.1")
    draw_whole("gmt-tab4", folder)
    beside = rows_of(folder, "gmt_tab4", "beside")
    assert {row["the paper's model"] for row in beside} == {"MISTRAL-7B"}
    texts = {row["whose"]: row["text"] for row in beside}
    assert texts == {"this study": "20", "the paper": "20", "difference": "0"}
    other = write_sweep(tmp_path / "o", EXACT, sets=("maths_test",))
    draw_whole("gmt-tab4", other)
    assert rows_of(other, "gmt_tab4", "beside") == []


def test_data_of_two_trainings_are_told_apart_in_table_4(tmp_path: Path) -> None:
    maths = write_sweep(tmp_path / "a", EXACT, sets=("maths_test",), data=["maths_train", 9, ""])
    mixed = write_sweep(tmp_path / "b", EXACT, sets=("maths_test",), data=["mixture", 9, ""])
    (drawing,) = draw_named("gmt-tab4", [maths, mixed])
    for name in ("maths_train → maths_test", "mixture → maths_test"):
        assert name in drawing.texts["md"]


def test_efficiency_is_told_in_medians_of_pairs(tmp_path: Path) -> None:
    speeds = {"sft": [10.0, 20.0, 40.0], "gmt": [9.0, 16.0, 38.0]}
    folder = write_efficiency(tmp_path / "s", speeds)
    draw_whole("gmt-tab3", folder)
    rows = rows_of(folder, "gmt_tab3")
    assert entry(rows, "samples/s", method="Vanilla SFT")["text"] == "20.00"
    assert entry(rows, "relative", method="GMT")["text"] == "0.900 [0.820–0.940]"
    assert entry(rows, "GFLOP", method="GMT")["text"] == "2.50"
    assert entry(rows, "peak", method="GMT")["text"] == "601"
    assert entry(rows, "samples/s", method="Random Mask")["text"] == "–"
    beside = [
        row for row in rows_of(folder, "gmt_tab3", "beside") if row["block"].endswith("MISTRAL-7B")
    ]
    difference = {"method": "GMT", "whose": "difference"}
    assert entry(beside, "relative", **difference)["text"] == "+0.023"  # 0.900 less 13.43 / 15.32
    assert entry(beside, "samples", **difference)["text"] == "–"
    printed = rows_of(folder, "gmt_tab3", "paper")
    assert entry(printed, "relative", method="GMT", model="MISTRAL-7B")["text"] == "0.877"
    assert entry(printed, "Training", method="GMT", model="LLAMA2-13B")["text"] == "12.74"


def test_the_papers_rows_stand_as_printed_with_their_best(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT)
    draw_whole("gmt-tab1", folder)
    rows = rows_of(folder, "gmt_tab1", "paper")
    own = [row for row in rows if row["model"] == "LLAMA3-8B" and row["column"] == "GSM8k"]
    assert [(row["method"], row["text"], row["best"]) for row in own] == [
        ("Pre-trained", "–", "0"),
        ("SFT", "78.1", "0"),
        ("One-off Drop", "78.1", "0"),
        ("HFT", "74.2", "0"),
        ("Random Mask", "80.3", "0"),
        ("GMT", "82.0 (+3.9)", "1"),
    ]


@pytest.mark.parametrize("kind", ["sweep", "efficiency"])
def test_plot_draws_both_kinds_and_the_same_again(tmp_path: Path, kind: str) -> None:
    if kind == "sweep":
        folder, tables = write_sweep(tmp_path / "s", EXACT), ["gmt_tab1", "gmt_tab4"]
    else:
        folder, tables = (
            write_efficiency(tmp_path / "s", {"sft": [1.0], "gmt": [1.0]}),
            ["gmt_tab3"],
        )
    result = CliRunner().invoke(app, ["plot", str(folder)])
    assert result.exit_code == 0, result.output
    files = [folder / f"{name}.{kind}" for name in tables for kind in ("csv", "md", "png", "svg")]
    assert all(f"drawn: {file}" in result.output for file in files)
    before = [file.read_bytes() for file in files]
    draw(folder)
    assert [file.read_bytes() for file in files] == before


def test_the_order_in_which_cells_finished_does_not_show(tmp_path: Path) -> None:
    forth = write_sweep(tmp_path / "a", EXACT)
    back = write_sweep(tmp_path / "b", dict(reversed(EXACT.items())))
    for folder in (forth, back):
        draw_whole("gmt-tab1", folder)
        draw_whole("gmt-tab4", folder)
    for name in ("gmt_tab1.csv", "gmt_tab4.csv"):
        assert (forth / name).read_bytes() == (back / name).read_bytes()


def test_an_empty_study_or_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    empty = write_sweep(tmp_path / "sweep", {})
    other = write_efficiency(tmp_path / "efficiency", {})
    for folder in (empty, other):
        with pytest.raises(DeltaLensError, match="finished cells"):
            draw(folder)
    for name, folder in (
        ("gmt-tab1", other),
        ("gmt-tab2", empty),
        ("gmt-tab3", empty),
        ("gmt-tab4", other),
    ):
        with pytest.raises(DeltaLensError, match="finished cells"):
            draw_whole(name, folder)
    assert not [*empty.glob("gmt_*"), *other.glob("gmt_*")]


def test_no_word_is_cut_off_or_runs_into_the_next() -> None:
    """Long names make the picture wider."""
    heads = ("method", *(f"metric {number} (of something)" for number in range(9)))
    rows = tuple(
        (Entry(f"a method with a long name {i}"), *[Entry("12.34 ± 0.56", best=i == 1)] * 9)
        for i in range(2)
    )
    block = Block("study", "a block", heads, rows)
    table = TableFigure("t", "A title", (block,), ("Many words of a note. " * 60,))
    figure = table_picture.draw_blocks(table)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    page = figure.bbox
    assert all(box.x0 >= page.x0 and box.x1 <= page.x1 for box in boxes)
    assert all(box.y0 >= page.y0 and box.y1 <= page.y1 for box in boxes)
    pairs = [
        (one, other)
        for place, one in enumerate(boxes)
        for other in boxes[:place]
        if abs(one.y0 - other.y0) < 3
    ]
    assert len(pairs) > 50
    assert not any(one.overlaps(other) for one, other in pairs)


def test_tables_need_no_torch(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", EXACT)
    program = f"""
import sys
sys.modules["torch"] = None  # from here on, importing it fails
from deltalens.figures import draw
print(len(draw({str(folder)!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "10"
