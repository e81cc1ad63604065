"""MFT's tables from studies' records: their numbers, what is missing, and what is refused."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import pytest

from deltalens.errors import RecordError
from deltalens.figures import draw
from deltalens.figures.mft_studies import load
from tests.support.drawn_tables import draw_whole
from tests.support.mft_studies import COMPARED, RATIOS, Values, write_study

Row = dict[str, str]
TABLES = ("mft-tab1", "mft-tab2", "mft-tab3", "mft-tab5", "mft-tab6")
THREE = ("maths_test", "code_test", "instructions_test")


def rows_of(folder: Path, name: str, source: str = "study") -> list[Row]:
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["source"] == source]


def entry(rows: list[Row], column: str, **labels: str) -> Row:
    (found,) = [
        row for row in rows if row["column"].startswith(column) and labels.items() <= row.items()
    ]
    return found


def comparison(path: Path, values: Values = COMPARED, **spec: object) -> Path:
    return write_study(path, "comparison", values, **spec)  # type: ignore[arg-type]


def less(by: float) -> Values:
    return {setting: value - by for setting, value in COMPARED.items()}


def test_a_place_is_mean_and_deviation_over_seeds_of_the_cells(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", blocks="4-7", mask_ratio="0.1")
    draw_whole("mft-tab1", folder)
    rows = rows_of(folder, "mft_tab1")
    frame = load(folder, "comparison").record.cells
    own = frame[(frame["method"] == "mft") & (frame["metric"] == "exact_match")]["value"]
    found = entry(rows, "maths_test, exact match", method="MFT")
    assert float(found["value"]) == pytest.approx(100 * statistics.mean(own))
    assert float(found["deviation"]) == pytest.approx(100 * statistics.stdev(own))
    assert (found["text"], found["seeds"], found["best"]) == ("74.0 ± 4.2", "2", "1")
    assert entry(rows, "maths_test, loss", method="MFT")["best"] == "1"
    assert entry(rows, "maths_test, exact match", method="FFT")["text"] == "70.0"
    order = list(dict.fromkeys(row["method"] for row in rows))
    assert order == ["base", "LoRA", "FFT", "continued FFT", "random mask", "L1 mask", "MFT"]
    text = (folder / "mft_tab1.md").read_text()
    assert "maths: trained on maths_train (1500 rows), masked blocks: 4-7, mask ratio 0.1." in text


def test_lora_beside_the_papers_is_the_one_from_the_base(tmp_path: Path) -> None:
    """The first version trained it on the fine-tune, and did not say so: its folders do not stand
    in the paper's row."""
    values = {**COMPARED, ("lora-continued", 0): 0.4, ("lora-on-ft", 0): 0.6}
    now, before = comparison(tmp_path / "now", values), comparison(tmp_path / "before", settings={})
    for folder in (now, before):
        draw_whole("mft-tab1", folder)
    rows = rows_of(now, "mft_tab1")
    order = list(dict.fromkeys(row["method"] for row in rows))
    assert order[:6] == ["base", "LoRA", "continued LoRA", "FFT", "continued FFT", "LoRA on FFT"]
    assert entry(rows, "maths_test, exact", method="LoRA")["text"] == "52.0 ± 2.8"
    rows = rows_of(before, "mft_tab1")
    assert entry(rows, "maths_test, exact", method="LoRA on FFT")["text"] == "52.0 ± 2.8"
    assert "LoRA" not in {row["method"] for row in rows}


def test_plain_training_by_preferences_is_dpo(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", objective="dpo")
    draw_whole("mft-tab1", folder)
    methods = {row["method"] for row in rows_of(folder, "mft_tab1")}
    assert "DPO" in methods
    assert "continued FFT" not in methods


def test_numbers_on_the_way_are_not_those_at_the_end(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", measured_at=(50, 100))
    draw_whole("mft-tab1", folder)
    found = entry(rows_of(folder, "mft_tab1"), "maths_test, exact", method="MFT")
    assert (found["text"], found["seeds"]) == ("74.0 ± 4.2", "2")


def test_each_domain_stands_on_its_own_data(tmp_path: Path) -> None:
    maths = comparison(tmp_path / "maths", sets=THREE)
    code = comparison(tmp_path / "code", less(0.2), sets=THREE, trained_on="code_train")
    draw_whole("mft-tab2", [maths, code])
    rows = rows_of(maths, "mft_tab2")
    assert entry(rows, "maths_test, exact", method="MFT")["text"] == "74.0 ± 4.2"
    # The second data set lies 10 points below the first, and this study 20 below the other.
    assert entry(rows, "code_test, exact", method="MFT")["text"] == "44.0 ± 4.2"
    columns = {row["column"].partition(",")[0] for row in rows}
    assert columns == {"maths_test", "code_test", "seeds"}


def test_data_whose_names_tell_no_domain_are_all_shown(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", trained_on="train", sets=("gsm8k", "mbpp"))
    draw_whole("mft-tab1", folder)
    columns = {row["column"].partition(",")[0] for row in rows_of(folder, "mft_tab1")}
    beside_the_paper = {"GSM8K"}
    assert columns == {"train → gsm8k", "train → mbpp", "seeds"} | beside_the_paper


def test_fine_tunes_on_a_mixture_are_the_lower_half(tmp_path: Path) -> None:
    upper, lower = comparison(tmp_path / "a"), comparison(tmp_path / "b", less(0.1))
    draw_whole("mft-tab1", upper, mixed=[lower])
    rows = rows_of(upper, "mft_tab1")
    exact = {
        row["block"]: row["text"]
        for row in rows
        if row["method"] == "MFT" and "exact" in row["column"]
    }
    assert exact == {
        "This study: domain-specific FFT": "74.0 ± 4.2",
        "This study: mixed-domain FFT": "64.0 ± 4.2",
    }


def test_every_model_stands_on_every_data_set(tmp_path: Path) -> None:
    maths = comparison(tmp_path / "maths", sets=THREE)
    code = comparison(tmp_path / "code", less(0.2), sets=THREE, trained_on="code_train")
    draw_whole("mft-tab5", [maths, code])
    rows = [row for row in rows_of(maths, "mft_tab5") if "exact" in row["block"]]
    for domain, below in (("maths", 0), ("code", 20)):
        for place, name in enumerate(THREE):
            found = entry(rows, name, **{"trained on": domain, "method": "MFT"})
            assert float(found["value"]) == pytest.approx(74 - below - 10 * place)
            assert found["best"] == "1"
    bases = [row for row in rows if row["method"] == "base" and row["column"] != "seeds"]
    assert [(row["trained on"], row["text"]) for row in bases] == [
        ("–", "10.0"),
        ("–", "0.0"),
        ("–", "-10.0"),
    ]


def test_a_threshold_stands_beside_a_ratio(tmp_path: Path) -> None:
    local = comparison(tmp_path / "local", less(0.01), mask_ratio="0.1")
    globally = comparison(tmp_path / "global", threshold=-0.035, mask_ratio="0.1")
    for order in ((local, globally), (globally, local)):
        draw_whole("mft-tab3", order)
        rows = rows_of(order[0], "mft_tab3")
        texts = {row["method"]: row["text"] for row in rows if "exact" in row["column"]}
        assert texts == {
            "base": "9.0",
            "FFT": "69.0",
            "continued FFT": "69.0 ± 2.8",
            "local MFT (mask ratio 0.1)": "73.0 ± 4.2",
            "global MFT (threshold -0.035)": "74.0 ± 4.2",
        }
    with pytest.raises(RecordError, match="no comparison with a threshold"):
        draw_whole("mft-tab3", local)


def test_the_papers_rows_stand_as_printed(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", threshold=-0.035)
    for name in TABLES:
        draw_whole(name, folder)
    first = rows_of(folder, "mft_tab1", "paper")
    mixed = {"setting": "Mixed Domain", "method": "Continued FFT"}
    assert entry(first, "HumanEval+", **mixed)["text"] == "18.3 (-8.6)"
    best = {
        "mft_tab2": ("IF-Eval", {"setting": "Specific Domain"}, "65.8 (+6.0)"),
        "mft_tab3": ("GSM8K", {"model": "LLaMA3.1-8B"}, "77.0"),
        "mft_tab5": ("GSM8K", {}, "47.3"),
        "mft_tab6": ("GSM8K", {}, "77.3"),
    }
    for name, (column, labels, text) in best.items():
        rows = [row for row in rows_of(folder, name, "paper") if row["best"] == "1"]
        assert entry(rows, column, **labels)["text"] == text


def test_with_one_seed_there_is_no_deviation(tmp_path: Path) -> None:
    values = {setting: value for setting, value in COMPARED.items() if setting[-1] == 0}
    folder = comparison(tmp_path / "s", values, seeds=1)
    draw_whole("mft-tab1", folder)
    found = entry(rows_of(folder, "mft_tab1"), "maths_test, exact", method="MFT")
    assert (found["text"], found["deviation"], found["seeds"]) == ("71.0", "", "1")
    assert "not finished" not in (folder / "mft_tab1.md").read_text()


def test_a_study_that_is_not_finished_leaves_gaps_and_says_so(tmp_path: Path) -> None:
    values = dict(list(COMPARED.items())[:3])
    folder = comparison(tmp_path / "s", values, methods=["base", "ft", "sft", "mft"])
    draw_whole("mft-tab1", folder)
    assert entry(rows_of(folder, "mft_tab1"), "maths_test, exact", method="MFT")["text"] == "–"
    said = "maths is not finished: 1 of 2 seeds of continued FFT, nothing of MFT yet."
    assert said in (folder / "mft_tab1.md").read_text()


def test_what_cannot_stand_together_is_refused(tmp_path: Path) -> None:
    one, same = comparison(tmp_path / "a"), comparison(tmp_path / "b")
    for name in ("mft-tab1", "mft-tab5"):
        with pytest.raises(RecordError, match="a second comparison of the domain 'maths'"):
            draw_whole(name, [one, same])
    other = [["maths_test", 200, "other"]]
    code = comparison(tmp_path / "c", trained_on="code_train", eval_data=other)
    with pytest.raises(RecordError, match="'maths_test' has other rows than in"):
        draw_whole("mft-tab6", [one, code])


def test_an_empty_study_or_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    empty = comparison(tmp_path / "empty", {})
    sweep = write_study(tmp_path / "sweep", "mask-ratio-sweep", RATIOS)
    for name in TABLES:
        for folder in (empty, sweep):
            with pytest.raises(RecordError, match="no comparison with finished cells"):
                draw_whole(name, folder)
    assert not [*empty.glob("mft_*"), *sweep.glob("mft_*")]


def test_a_comparisons_pictures_are_those_it_has_data_for(tmp_path: Path) -> None:
    plain = comparison(tmp_path / "plain")
    assert {path.stem for path in draw(plain)} == {"mft_tab1"}
    full = comparison(tmp_path / "full", sets=THREE, measured_at=(10, 20), threshold=-0.035)
    drawn = {path.stem for path in draw(full)}
    assert drawn == {"mft_fig2", "mft_tab1", "mft_tab3", "mft_tab5"}
