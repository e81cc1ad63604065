"""What a comparison of salience metrics says beside the paper's ranking."""

from pathlib import Path

from deltalens.io.records import load_study
from deltalens.reports.trainings import summarize_sweep
from tests.support.speft_studies import METHODS, comparison


def test_the_papers_ranking_stands_beside_the_studys(tmp_path: Path) -> None:
    said = "\n".join(summarize_sweep(load_study(comparison(tmp_path / "s"))).sentences())
    assert "the paper's ranking" in said
    assert "this study's: Gradient, SNIP, PiSSA, LoRA, Magnitude" in said
    assert "Spearman's correlation" in said
    assert "the best salience here is gradient, of first order" in said


def test_one_salience_alone_is_not_ranked(tmp_path: Path) -> None:
    values = {key: v for key, v in METHODS.items() if ":" not in key[0]}
    study = comparison(tmp_path / "s", {**values, ("speft", 0): 0.5})
    said = "\n".join(summarize_sweep(load_study(study)).sentences())
    assert "the paper's ranking" not in said
