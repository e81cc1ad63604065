"""Masked gradients on parts of the data, beside plain fine-tuning: GMT's open question."""

from pathlib import Path

import pytest

from deltalens import load_study
from deltalens.figures import draw, draw_figure
from deltalens.io.records import Cell, Measurement, StudyFolder
from deltalens.reports.trainings import summarize_sweep
from tests.support.mft_studies import DATA_RATIOS, write_study
from tests.support.runs import succeeds
from tests.support.training_folders import write_model, write_rows

LESS: dict[tuple[str, float, int], float] = {
    ("ft", 0.0, 0): 0.1,
    **{
        (method, ratio, seed): value + 0.02 * seed * (1 + (method == "gmt"))
        for method, values in {"sft": (0.4, 0.7), "gmt": (0.5, 0.69)}.items()
        for ratio, value in zip((0.1, 1.0), values, strict=True)
        for seed in range(2)
    },
}


def test_the_summary_holds_methods_against_plain_fine_tuning_seed_by_seed(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", "data-ratio-sweep", LESS)
    lines = list(summarize_sweep(load_study(study)).sentences())
    assert lines[0] == "exact_match: ft 0.1000", "plain fine-tuning has no level of its own here"
    assert "sft: best 0.7100 ± 0.0141 at data ratio 1" in lines
    # By hand: at 0.1 it is 0.10 and 0.12 better, at 1 0.01 worse and 0.01 better.
    assert lines[-1] == (
        "gmt minus sft, seed by seed (higher is better): +0.1100 ± 0.0141 at 0.1, "
        "+0.0000 ± 0.0141 at 1"
    )


def test_one_seed_has_no_deviation_and_a_missing_partner_is_left_out(tmp_path: Path) -> None:
    few = {key: value for key, value in LESS.items() if not key[2] and key != ("sft", 1.0, 0)}
    study = write_study(tmp_path / "s", "data-ratio-sweep", few)
    *_, last = summarize_sweep(load_study(study)).sentences()
    assert last == "gmt minus sft, seed by seed (higher is better): +0.1000 at 0.1"


def test_its_picture_calls_things_by_their_names(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", "data-ratio-sweep", LESS)
    names = {file.name for file in draw(study)}
    assert names == {"gmt_data.png", "gmt_data.svg"}
    svg = (study / "gmt_data.svg").read_text()
    for text in ("SFT", "GMT", "before training", "data ratio"):
        assert text in svg, text
    assert "FFT" not in svg
    masks = write_study(tmp_path / "m", "data-ratio-sweep", DATA_RATIOS)
    assert {file.stem for file in draw(masks)} == {"mft_fig5"}


def test_a_study_of_one_cell_is_drawn(tmp_path: Path) -> None:
    spec = {"methods": ["sft", "gmt"], "data": ["t", 3, "d"], "eval_data": [["e", 3, "d"]]}
    study = StudyFolder.open(tmp_path, "data-ratio-sweep", spec, ("method", "data_ratio", "seed"))
    setting = {"method": "gmt", "data_ratio": 0.5, "seed": 0}
    study.append(Cell(setting, {"loss": Measurement(0.5)}, 1.0))
    study.close()
    assert draw_figure("gmt-data", tmp_path)


@pytest.mark.slow
def test_the_command_trains_them_and_draws(tmp_path: Path) -> None:
    """What is masked is updates: it is recorded, and makes other numbers."""
    base, rows = write_model(tmp_path / "base"), write_rows(tmp_path / "rows.jsonl")
    losses = {}
    for apply_to in ("gradient", "update"):
        out = tmp_path / apply_to
        printed = succeeds(
            *("sweep", "data-ratio", f"gmt:apply-to={apply_to}", base, "--train-data", rows),
            *("--eval-data", rows, "-o", out, "--data-ratios", "0.5,1", "--seeds", 1),
            *("--steps", 2, "--lr", "1e-2", "-q"),
        )
        assert printed == ""
        record = load_study(out)
        assert record.spec["methods"] == ["sft", "gmt"]
        assert record.setting("apply_to", "gmt") == apply_to
        cells = record.cells[record.cells["metric"] == "loss"]
        assert len(cells) == 1 + 2 * 2
        losses[apply_to] = dict(zip(cells["method"], cells["value"], strict=True))
        assert (out / "gmt_data.png").exists()
    assert losses["gradient"]["sft"] == losses["update"]["sft"]
    assert losses["gradient"]["gmt"] != losses["update"]["gmt"]
