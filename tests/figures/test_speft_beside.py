"""A study's numbers, ranks and settings beside those that SPEFT prints."""

from __future__ import annotations

from pathlib import Path

from tests.support.drawn_tables import draw_whole, entry, rows_of
from tests.support.speft_studies import comparison, less, two_tasks


def test_ours_stands_beside_the_papers_with_the_difference(tmp_path: Path) -> None:
    folders = two_tasks(tmp_path, model="opt-350m")
    draw_whole("speft-tab1", folders)
    rows = rows_of(folders[0], "speft_tab1", "Beside the paper: OPT-350m")
    of = {
        whose: entry(rows, "MNLI", method="LoRA", whose=whose)
        for whose in ("this study", "the paper", "difference")
    }
    assert {whose: row["text"] for whose, row in of.items()} == {
        "this study": "80.00 ± 1.00",
        "the paper": "83.56 ± .07",
        "difference": "-3.56",
    }
    assert float(of["the paper"]["deviation"]) == 0.07
    columns = {row["column"] for row in rows}
    assert columns == {"MNLI", "MRPC", "Avg.", "rank"}
    # The paper averages six tasks, so these averages are not of the same.
    average = {"method": "LoRA", "whose": "difference"}
    assert entry(rows, "Avg.", **average)["text"] == "–"
    # Random masks, and models without any, have no row in the paper.
    assert {row["method"] for row in rows} == {*("LoRA", "PiSSA", "Magnitude", "Gradient", "SNIP")}


def test_averages_over_the_papers_own_tasks_are_compared(tmp_path: Path) -> None:
    tasks = ("mrpc", "qnli", "sst-2", "stsb", "QQP")
    folders = [
        comparison(tmp_path / task, trained_on=f"{task}_train", sets=[f"{task}_dev"])
        for task in tasks
    ]
    draw_whole("speft-tab11", folders)
    rows = rows_of(folders[0], "speft_tab11", "Beside the paper: OPT-1.3b")
    found = {
        row["column"]: row["text"]
        for row in rows
        if (row["method"], row["whose"]) == ("LoRA", "difference")
    }
    assert found == {
        **{"MRPC": "-3.33", "QNLI": "-12.48", "SST-2": "-15.99", "STS-B": "-9.03"},
        **{"QQP": "-9.97", "Avg.": "-10.16", "rank": "+1"},
    }


def test_ranks_can_be_compared_whatever_the_tasks(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", trained_on="maths", sets=["maths_test"])
    draw_whole("speft-tab1", folder)
    for model, theirs in (
        ("OPT-350m", {"Gradient": "1", "LoRA": "2", "PiSSA": "3", "SNIP": "4", "Magnitude": "5"}),
        (
            "BERT-base-uncased",
            {"Gradient": "1", "PiSSA": "2", "LoRA": "3", "SNIP": "4", "Magnitude": "5"},
        ),
    ):
        rows = rows_of(folder, "speft_tab1", f"Beside the paper: {model}")
        assert {row["column"] for row in rows} == {"Avg.", "rank"}
        ranks = {
            whose: {
                row["method"]: row["text"]
                for row in rows
                if (row["whose"], row["column"]) == (whose, "rank")
            }
            for whose in ("this study", "the paper")
        }
        assert ranks["the paper"] == theirs
        assert ranks["this study"] == {
            **{"Gradient": "1", "SNIP": "2", "PiSSA": "3", "LoRA": "4", "Magnitude": "5"}
        }


def test_a_lost_body_is_called_so(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s")
    for name in ("speft-tab3", "speft-tab12"):
        draw_whole(name, folder)
        said = (folder / f"{name.replace('-', '_')}.md").read_text()
        assert "| Gradient | body lost | body lost |" in said
        assert "The body of the paper's table is lost, so no difference" in said
        assert "Beside" not in said
    # A single number of Table 10 survives, which ranks nothing.
    draw_whole("speft-tab10", folder)
    rows = rows_of(folder, "speft_tab10", "Beside the paper: OPT-125m")
    assert {row["column"] for row in rows} == {"MNLI", "Avg."}
    assert entry(rows, "Avg.", method="Gradient", whose="the paper")["text"] == "86.92"
    assert entry(rows, "Avg.", method="LoRA", whose="the paper")["text"] == "body lost"


def test_larger_models_are_columns_by_model_and_data(tmp_path: Path) -> None:
    folders = [
        comparison(
            tmp_path / f"{model}{data}",
            less(by),
            trained_on=data,
            sets=["mmlu"],
            model=model,
            eval_data=[["mmlu", 300, "m"]],
        )
        for model, data, by in (
            ("gemma-2-2b", "alpaca", 0.3),
            ("gemma-2-2b", "oasst2", 0.31),
            ("Qwen2-7B", "alpaca", 0.1),
            ("Qwen2-7B", "oasst2", 0.12),
        )
    ]
    draw_whole("speft-tab2", folders)
    rows = rows_of(folders[0], "speft_tab2")
    found = entry(rows, "Qwen2-7B, oasst2 → mmlu, exact match (%)", method="Gradient")
    assert found["text"] == "73.00 ± 1.00"
    beside = rows_of(folders[0], "speft_tab2", "Beside the paper")
    key = {"method": "Gradient", "whose": "difference"}
    assert entry(beside, "Qwen2-7b, OASST2", **key)["text"] == "+2.45"
    assert entry(beside, "Gemma2-2b, Alpaca", **key)["text"] == "+1.89"
    assert entry(beside, "Avg.", **key)["text"] == "+2.32"


def test_settings_stand_beside_the_papers(tmp_path: Path) -> None:
    low_rank = {"lora_rank": 16, "lora_alpha": 32}
    folder = comparison(
        tmp_path / "s",
        settings={
            **{"lora": low_rank, "pissa": low_rank},
            "speft:metric=gradient": {"like_lora": 16},
            "speft:metric=snip": {"density": "0.005", "learning_rate": 1e-3},
        },
        learning_rate=5e-4,
        warmup=0.03,
        batch_size=8,
        accumulate=4,
        epochs=2.0,
        recipe={"lr_scheduler_type": "linear"},
    )
    draw_whole("speft-tab7", folder)
    rows = rows_of(folder, "speft_tab7", "Settings")

    def both(method: str, name: str) -> tuple[str, str]:
        key = {"method": method, "hyperparameter": name}
        columns = ("this study", "the paper: Gemma2-2b")
        ours, theirs = (entry(rows, column, **key)["text"] for column in columns)
        return ours, theirs

    assert both("Shared", "LR Schedule") == ("linear", "Linear")
    assert both("Shared", "Warmup Ratio") == ("0.03", "0.03")
    assert both("Shared", "Runs") == ("3", "–")
    assert both("LoRA", "Batch Size") == ("32", "16")
    assert both("LoRA", "LoRA r") == ("16", "64")
    assert both("PiSSA", "LoRA α") == ("32", "–")
    assert both("Sparse", "Learning Rate") == ("0.0005, 0.001", "2E-5")
    assert both("Sparse", "# Epochs") == ("2", "1")
    assert both("Sparse", "Sparse Top k") == (
        "as many as LoRA r = 16, 0.005 of the adapted weights",
        "0.18%",
    )
    assert both("Sparse", "Max Seq. Len.") == ("the model's", "1024")
    assert "Tables 2 and 3 train 0.97 %" in (folder / "speft_tab7.md").read_text()


def test_settings_of_lost_tables_are_those_of_the_text(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "s", settings={"speft:metric=gradient": {"of_model": "0.35%"}})
    draw_whole("speft-tab5", folder)
    rows = rows_of(folder, "speft_tab5", "Settings")
    density = {"method": "Sparse", "hyperparameter": "ρ"}
    assert entry(rows, "this study", **density)["text"] == "0.35% of the model"
    assert entry(rows, "the paper: OPT-1.3b", **density)["text"] == "0.18%"
    shared = [row["hyperparameter"] for row in rows if row["method"] == "Shared"]
    assert shared[-1] == "all others"
    others = {"method": "Shared", "hyperparameter": "all others"}
    assert entry(rows, "the paper: OPT-350m", **others)["text"] == "body lost"
    # What the paper has for all methods together is not told a second time.
    assert [row for row in rows if row["hyperparameter"] == "Sparse Top k"] == []
