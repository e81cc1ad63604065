"""What a salience study and a training answer at their edges: little data, NaN, a tie."""

from __future__ import annotations

import json
import math
from pathlib import Path

from deltalens.io.records import load_study, load_training
from deltalens.reports.answers import UNKNOWN, Answer, answers_of
from tests.support.records_of_runs import make_training
from tests.support.salience_studies import make_salience_study

RANDOM = {("gradient", "random"): 0.01}


def salience(folder: Path, agreement: dict[tuple[str, str], float], *parts: str) -> Answer:
    study = make_salience_study(folder, "agreement", *parts, agreement=agreement)
    (answer,) = answers_of(load_study(study))
    return answer


def test_without_overlaps_only_the_size_is_said(tmp_path: Path) -> None:
    (answer,) = answers_of(load_study(make_salience_study(tmp_path / "s")))
    assert answer.number == "0.2 %"
    assert answer.sentence == "Each mask keeps 40 weights, 0.2 % of the model."
    assert answer.uncertainty.endswith("was not measured")


def test_random_masks_are_no_metric_to_agree_with(tmp_path: Path) -> None:
    assert "share" not in salience(tmp_path / "s", RANDOM).sentence


def test_one_pair_has_no_least(tmp_path: Path) -> None:
    said = salience(tmp_path / "s", {("gradient", "snip"): 0.25}).sentence
    assert said.endswith("gradient and SNIP share most of theirs, 40 %.")


def test_pairs_that_agree_alike_have_no_least(tmp_path: Path) -> None:
    pairs = {("gradient", "snip"): 0.25, ("gradient", "fisher"): 0.25}
    assert "least" not in salience(tmp_path / "s", pairs).sentence


def test_an_overlap_that_is_no_number_is_passed_over(tmp_path: Path) -> None:
    pairs = {("gradient", "fisher"): math.nan, ("gradient", "snip"): 0.25}
    said = salience(tmp_path / "s", pairs).sentence
    assert "nan" not in said
    assert "gradient and SNIP share most" in said


def test_no_overlap_that_is_a_number_is_none(tmp_path: Path) -> None:
    assert "share" not in salience(tmp_path / "s", {("gradient", "snip"): math.nan}).sentence


def test_the_least_steady_metric_is_named(tmp_path: Path) -> None:
    doubt = salience(tmp_path / "s", RANDOM, "sample").uncertainty
    assert "SNIP, the least steady metric" in doubt
    assert "46.2 %" in doubt


def training(folder: Path, *lines: object) -> list[Answer]:
    """The answers of a training that logged this."""
    make_training(folder)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return answers_of(load_training(folder))


def test_a_training_that_logged_nothing_answers_nothing(tmp_path: Path) -> None:
    assert training(tmp_path / "t") == []


def test_one_logged_step_has_no_spread(tmp_path: Path) -> None:
    (answer,) = training(tmp_path / "t", {"step": 1, "loss": 2.0})
    assert answer.number == "2.0000"
    assert answer.uncertainty == "one step, so its spread is unknown"


def test_a_loss_that_is_no_number_is_said_to_be(tmp_path: Path) -> None:
    (answer,) = training(tmp_path / "t", {"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan})
    assert answer.number == UNKNOWN
    assert "not a number" in answer.sentence


def test_what_was_measured_last_is_answered_with_its_error(tmp_path: Path) -> None:
    first, last = ({"step": n, "evaluated": {"test/loss": [1 / n, 0.02, 9]}} for n in (1, 2))
    (answer,) = training(tmp_path / "t", first, last)
    assert answer.number == "0.5000"
    assert answer.uncertainty == "standard error 0.0200 over 9 examples"


def test_a_measurement_without_an_error_says_so(tmp_path: Path) -> None:
    (answer,) = training(tmp_path / "t", {"step": 1, "evaluated": {"test/loss": [1.0, None, 9]}})
    assert answer.uncertainty == "no standard error was recorded"
