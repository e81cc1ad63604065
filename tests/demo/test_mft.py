"""`deltalens demo mft`: fine-tunes, comparisons, sweeps and tables; made once, then shown."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltalens import load_study
from deltalens.cli.main import app
from deltalens.demo import build
from tests.support.demo import shortened, tiny_models

STUDIES = (
    *("mft-maths", "mft-code", "mft-instructions"),
    *("mft-mixture-maths", "mft-mixture-code", "mft-mixture-instructions"),
    *("mft-layers", "mft-mask-ratio", "mft-data-ratio"),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command makes a tiny demo, of two steps a training."""
    tiny_models(monkeypatch)
    monkeypatch.setattr(build, "TRAINING_ROWS", 8)
    monkeypatch.setattr(build, "FEW_ROWS", 64)
    shortened(monkeypatch, "mft", {"steps": 2, "eval_every": 1, "seeds": 1, "jobs": 1})


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_everything_is_made_and_then_shown(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["demo", "mft", "-o", str(tmp_path)])
    assert first.exit_code == 0, (first.output, first.exception)
    kinds = {name: load_study(tmp_path / name).kind for name in STUDIES}
    assert list(kinds.values()) == [
        *["comparison"] * 6,
        *("layer-sweep", "mask-ratio-sweep", "data-ratio-sweep"),
    ]
    compared = load_study(tmp_path / "mft-code").cells
    assert set(compared["method"]) == {"base", "ft", "mft", "sft", "random-mask-weights", "l1-mask"}
    assert {metric.partition("/")[0] for metric in compared["metric"]} >= {
        "maths_unseen",
        "code_unseen",
        "instructions_unseen",
    }
    for domain in ("maths", "code", "instructions"):
        goes_on = load_study(tmp_path / f"mft-mixture-{domain}")
        assert goes_on.facts["model"] == str(tmp_path / "ft-mixture")
        assert goes_on.spec["data"][0] == f"{domain}_few_train"
    table = (tmp_path / "mft-maths" / "mft_tab1.csv").read_text()
    assert table.count("This study: mixed-domain FFT") >= 3
    for name in ("mft_tab1", "mft_tab5", "mft_fig2"):
        assert (tmp_path / "mft-maths" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    journals = [(tmp_path / name / "cells.jsonl").read_bytes() for name in STUDIES]
    again = CliRunner().invoke(app, ["demo", "mft", "-o", str(tmp_path)])
    assert again.exit_code == 0
    assert journals == [(tmp_path / name / "cells.jsonl").read_bytes() for name in STUDIES]
