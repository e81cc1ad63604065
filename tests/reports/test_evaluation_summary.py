"""What the summary of an evaluation claims, and what it does not."""

import json
from math import nan
from pathlib import Path

import pytest

from deltalens.errors import RecordError
from deltalens.io.records import Measurement, load_study
from deltalens.reports import summarize
from deltalens.reports.evaluate import summarize_evaluation
from tests.support.evaluations import Scored, write_evaluation
from tests.support.finished_studies import make_study


def scored(name: str, loss: float, stderr: float = 0.01, step: int | None = None) -> Scored:
    numbers = {"loss": Measurement(loss, stderr, 100)}
    if step is None:
        return Scored(name, numbers)
    return Scored(f"{name}/checkpoint-{step}", numbers, name, step)


def said(folder: Path, *models: Scored) -> str:
    return "\n".join(summarize(write_evaluation(folder, [*models])).sentences())


def test_the_best_is_named_with_those_that_may_be_as_good(tmp_path: Path) -> None:
    """Two standard errors of the difference are 0.0283 here."""
    text = said(
        tmp_path, scored("a", 1.0), scored("b", 1.028), scored("c", 1.029), scored("d", 2.0)
    )
    assert "loss: best is a, 1.0000 ± 0.0100 (n = 100); no clear difference to b\n" in text
    assert "as if the two models had answered different rows" in text


def test_a_best_that_is_clear_is_said_to_be(tmp_path: Path) -> None:
    assert "best is b, 0.9000 ± 0.0100 (n = 100), clearly ahead of all others" in said(
        tmp_path, scored("a", 1.0), scored("b", 0.9)
    )


def test_a_training_is_followed_from_its_first_checkpoint_to_its_last(tmp_path: Path) -> None:
    steps = {10: 2.0, 20: 1.0, 30: 1.01}
    text = said(tmp_path, *(scored("a", loss, step=step) for step, loss in steps.items()))
    assert (
        "a: loss 2.0000 ± 0.0100 at step 10, 1.0100 ± 0.0100 at step 30: better by 0.9900 ± 0.0141"
        "; best at step 20, 1.0000 ± 0.0100, not clearly better than the last" in text
    )


def test_a_change_within_its_error_is_no_change(tmp_path: Path) -> None:
    text = said(tmp_path, scored("a", 1.0, step=1), scored("a", 1.02, step=2))
    assert "at step 2: no clear change (-0.0200 ± 0.0141); best at step 1" in text


def test_a_tie_with_the_last_is_no_better_one(tmp_path: Path) -> None:
    text = said(tmp_path, *(scored("a", loss, step=n) for n, loss in enumerate((3.0, 1.0, 1.0), 1)))
    assert "the last is the best of 3" in text


def test_trainings_are_kept_apart(tmp_path: Path) -> None:
    models = [
        scored(name, loss, step=step) for name, loss in (("a", 1), ("b", 2)) for step in (1, 2)
    ]
    summary = summarize_evaluation(write_evaluation(tmp_path, models))
    assert [course.training for course in summary.leading[0].courses()] == ["a", "b"]


def test_a_value_that_is_not_finite_is_left_out_by_name(tmp_path: Path) -> None:
    text = said(tmp_path, scored("a", nan, nan), scored("b", 1.0), scored("c", 3.0))
    assert "best is b" in text
    assert "values of loss that are not finite are left out: a" in text
    assert "no value is finite" in said(tmp_path / "none", scored("a", nan, nan))


def test_a_metric_without_a_direction_has_no_best(tmp_path: Path) -> None:
    models = [Scored(name, {"speed": Measurement(n)}) for n, name in enumerate("ab")]
    summary = summarize_evaluation(write_evaluation(tmp_path, models))
    assert summary.metrics[0].best is None
    assert "unknown whether higher or lower is better" in "\n".join(summary.sentences())
    known = write_evaluation(tmp_path / "known", models, better={"speed": "higher"})
    assert "speed: best is b, 1.0000, clearly ahead" in "\n".join(summarize(known).sentences())


def test_one_table_has_every_model_on_every_metric(tmp_path: Path) -> None:
    numbers = {"a/exact_match": Measurement(0.5, 0.1, 25), "b/loss": Measurement(1.0, 0.2, 25)}
    summary = summarize_evaluation(write_evaluation(tmp_path, [Scored("m", numbers)]))
    (table,) = summary.tables()
    assert table.columns == ("model", "a/exact_match", "b/loss")
    assert table.rows == (("m", "0.5000 ± 0.1000", "1.0000 ± 0.2000"),)
    assert [metric.metric for metric in summary.leading] == ["a/exact_match", "b/loss"]


def test_json_names_the_best_and_each_course(tmp_path: Path) -> None:
    models = [scored("a", 2.0, step=1), scored("a", 1.0, step=2), scored("base", 3.0)]
    found = summarize(write_evaluation(tmp_path, models)).as_json()["metrics"]["loss"]
    assert json.loads(json.dumps(found))["best"] == "a/checkpoint-2"
    assert found["models"]["base"] == {
        **{"training": None, "step": None, "value": 3.0, "stderr": 0.01, "n": 100}
    }
    assert found["trainings"]["a"]["first"] == "a/checkpoint-1"
    assert found["trainings"]["a"]["gained"] == 1.0
    assert found["trainings"]["a"]["gained_stderr"] == pytest.approx(0.0141, abs=1e-4)


def test_another_kind_of_study_is_refused(tmp_path: Path) -> None:
    record = load_study(make_study(tmp_path / "study", "landscape"))
    with pytest.raises(RecordError, match="kind 'landscape', not evaluate"):
        summarize_evaluation(record)
