"""The papers' numbers beside a study's: in tables with their difference, in pictures as hollow
marks, and only where the data are the paper's."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import RecordError
from deltalens.figures import draw_named
from deltalens.figures.paper_points import benchmark_of, gmt_drops, gmt_ratios, mft_points
from deltalens.io.checksum import sealed
from tests.support.gmt_studies import EXACT, write_sweep
from tests.support.mft_studies import COMPARED, RATIOS, write_study

METHODS = {**EXACT, ("ft", 0.0, 0): 0.1}


def beside(name: str, folders: Any, **options: Any) -> dict[tuple[str, ...], str]:
    """Block, row, whose and column -> text, of the blocks beside the paper."""
    drawing, *_ = draw_named(name, folders, **options)
    return {
        (row["block"], row["method"], row["whose"], row["column"]): row["text"]
        for row in csv.DictReader(io.StringIO(drawing.texts["csv"]))
        if row["block"].startswith("Beside the paper")
    }


def hollow(axis: Any) -> dict[str, list[tuple[float, float]]]:
    """Marker -> the points of the paper."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in axis.lines:
        if line.get_label() == "_the paper":
            assert line.get_markerfacecolor() == "none"
            found.setdefault(line.get_marker(), []).append(tuple(line.get_xydata()[0]))
    return found


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("gsm8k_test", "GSM8K"),
        ("hendrycks_math", "MATH"),
        ("maths_test", ""),
        ("humaneval_plus", "HumanEval+"),
        ("HumanEval", "HumanEval"),
        ("mbpp+", "MBPP+"),
        ("code", ""),
    ],
)
def test_data_is_a_benchmark_by_its_name(data: str, name: str) -> None:
    assert benchmark_of(data) == name


def test_gmts_rows_stand_beside_each_model_with_their_difference(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", METHODS, sets=("gsm8k_test", "math_test"))
    found = beside("gmt-tab1", folder)
    block = "Beside the paper: MISTRAL-7B, math reasoning"
    # GMT at 0.2: 70 %, and the paper's 78.6.
    assert found[block, "GMT", "this study", "GSM8k"] == "70.0 ± 15.6"
    assert found[block, "GMT", "the paper", "GSM8k"] == "78.6 (+3.3)"
    assert found[block, "GMT", "difference", "GSM8k"] == "-8.6"
    assert found["Beside the paper: LLAMA3-8B, math reasoning", "SFT", "difference", "MATH"] == (
        f"{50 - 29.2:+.1f}"
    )
    assert not beside("gmt-tab1", write_sweep(tmp_path / "t", METHODS))


def test_the_model_before_training_and_the_average_have_a_place(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", METHODS, sets=("gsm8k_test", "math_test"))
    (drawing,) = draw_named("gmt-tab1", folder)
    rows = [*csv.DictReader(io.StringIO(drawing.texts["csv"]))]
    own = [row for row in rows if row["block"].startswith("This study")]
    assert own[0]["method"] == "Pre-trained"
    average = {row["method"]: row["text"] for row in own if row["column"].startswith("average")}
    assert average["Pre-trained"] == "5.0"
    assert average["GMT"].startswith("65.0")


def test_other_data_are_not_taken_for_the_papers_average(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", METHODS, sets=("maths_test", "code_test"))
    (drawing,) = draw_named("gmt-tab2", folder)
    assert "Beside the paper" not in drawing.texts["md"]


def test_several_domains_share_a_figure_and_a_table(tmp_path: Path) -> None:
    maths = write_sweep(tmp_path / "maths", METHODS, sets=("gsm8k_test", "math_test"))
    code = write_sweep(tmp_path / "code", METHODS, sets=("humaneval", "mbpp"))
    general = write_sweep(tmp_path / "general", METHODS, sets=("mmlu", "bbh"))
    (drawing,) = draw_named("gmt-fig2", [code, maths, general])
    axes = drawing.figure.axes
    assert [axis.get_title() for axis in axes] == [
        *("code\n→ humaneval", "maths\n→ gsm8k_test", "general\n→ mmlu"),
        *("code\n→ mbpp", "maths\n→ math_test", "general\n→ bbh"),
    ]
    # Three columns, and each axis alone in its place.
    places = [axis.get_subplotspec().num1 for axis in axes]
    assert places == [*range(6)]
    assert hollow(axes[1])["o"] == [(0.2, 78.6)]
    assert hollow(axes[4])["o"] == [(0.2, 28.5)]
    found = beside("gmt-tab1", [code, maths])
    assert {row[0].rpartition(", ")[2] for row in found} == {"math reasoning", "code generation"}


def test_the_papers_points_lie_where_its_tables_have_them(tmp_path: Path) -> None:
    assert dict(((p.method, p.x), p.y) for p in gmt_ratios("gsm8k", ["gsm8k"])) == {
        ("sft", 0.0): 75.3,
        ("gmt", 0.2): 78.6,
        ("random-mask", 0.2): 74.6,
        ("one-off-drop", 0.2): 74.6,
    }
    # On the general domain GSM8K is another number, of another model, at another ratio.
    assert [p for p in gmt_ratios("gsm8k", ["gsm8k", "mmlu"]) if p.method == "gmt"] == [
        ("gmt", 0.4, 38.0)
    ]
    assert [(p.x, p.y) for p in gmt_drops("math")] == [(0.0, 27.0), (0.2, 27.6)]
    assert mft_points("maths_test", {"mft": 0.1}) == []
    folder = write_study(tmp_path / "s", "mask-ratio-sweep", RATIOS, sets=("gsm8k",))
    (drawing,) = draw_named("mft-fig8", folder)
    exact, loss = drawing.figure.axes
    assert hollow(exact)["^"] == [(0.1, 47.3)]
    assert not hollow(loss)
    assert "Large hollow marks" in drawing.figure.get_supxlabel().replace("\n", " ")


def test_other_data_have_no_points_and_the_caption_says_so(tmp_path: Path) -> None:
    (drawing,) = draw_named("mft-fig4", write_study(tmp_path, "mask-ratio-sweep", RATIOS))
    assert not hollow(drawing.figure.axes[0])
    assert "are of other data" in drawing.figure.get_supxlabel().replace("\n", " ")


def test_mfts_distances_stay_distances(tmp_path: Path) -> None:
    upper = write_study(tmp_path / "a", "comparison", COMPARED, sets=("gsm8k",))
    lower = write_study(tmp_path / "b", "comparison", COMPARED, sets=("gsm8k",))
    found = beside("mft-tab2", upper, mixed=[lower])
    where = "(in brackets: the distance to FFT)"
    specific = f"Beside the paper: domain-specific FFT {where}"
    assert found[specific, "MFT", "this study", "GSM8K"] == "74.0 ± 4.2"
    assert found[specific, "MFT", "the paper", "GSM8K"] == "77.3 (+0.3)"
    assert found[specific, "MFT", "difference", "GSM8K"] == "-3.3"
    mixed = f"Beside the paper: mixed-domain FFT {where}"
    assert found[mixed, "MFT", "the paper", "GSM8K"] == "73.8 (+0.9)"


def test_tables_3_and_5_stand_beside_the_paper(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", "comparison", COMPARED, sets=("gsm8k",), threshold=-0.035)
    found = beside("mft-tab3", folder)
    (text,) = [
        text
        for (block, method, whose, _), text in found.items()
        if "LLaMA2-7B" in block and method.startswith("global MFT") and whose == "difference"
    ]
    assert text == f"{74 - 49.0:+.1f}"
    across = beside("mft-tab6", folder)
    assert across["Beside the paper", "MFT", "the paper", "GSM8K"] == "77.3"
    assert across["Beside the paper", "base", "the paper", "GSM8K"] == "55.9"


def write_training(folder: Path, data: str = "maths_train", **values: Any) -> Path:
    """The folder of a training that was measured on the way, as far as a figure reads it."""
    folder.mkdir()
    spec = {
        "method": "sft",
        "data": [data, 9, "d"],
        "eval_data": [["maths_test", 300, "maths_test"]],
    }
    record = {"format": 2, "deltalens": "0", "identity": 3, "asked": spec, "facts": {"steps": 200}}
    (folder / "train.json").write_text(json.dumps(sealed(record)))
    lines = [
        {"step": int(step.removeprefix("at_")), "evaluated": {"exact_match": [value, 0.02, 300]}}
        for step, value in values.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_steps_count_from_the_base_where_the_fine_tunes_training_is_given(tmp_path: Path) -> None:
    values = {**COMPARED, ("lora-continued", 0): 0.6}
    study = write_study(tmp_path / "s", "comparison", values, measured_at=(50, 100), steps=100)
    training = write_training(tmp_path / "fft", at_100=0.5, at_200=0.7)
    (drawing,) = draw_named("mft-fig2", [study, training])
    axis = drawing.figure.axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert [*lines["FFT, training"].get_xdata()] == [0, 100, 200]
    assert [*lines["FFT, training"].get_ydata()] == pytest.approx([10, 50, 70])
    assert [*lines["MFT"].get_xdata()] == [200, 250, 300]
    assert [*lines["LoRA"].get_xdata()] == [0, 50, 100]
    assert [*lines["continued LoRA"].get_xdata()] == [100, 150, 200]
    assert lines["continued LoRA"].get_ydata()[0] == pytest.approx(52)
    (star,) = [line for line in axis.lines if line.get_marker() == "*"]
    assert [*star.get_xdata()] == [200]


def test_a_training_that_belongs_to_no_comparison_is_refused(tmp_path: Path) -> None:
    studies = [
        write_study(
            tmp_path / name, "comparison", COMPARED, trained_on=f"{name}_train", measured_at=(5,)
        )
        for name in ("maths", "code")
    ]
    other = write_training(tmp_path / "fft", data="poems", at_1=0.5)
    with pytest.raises(RecordError, match="trained on poems, and no comparison of that domain"):
        draw_named("mft-fig2", [*studies, other])
    silent = write_training(tmp_path / "silent")
    with pytest.raises(RecordError, match="nothing was measured during training"):
        draw_named("mft-fig2", [studies[0], silent])
    with pytest.raises(RecordError, match="trainings alone"):
        draw_named("mft-fig2", [other])
