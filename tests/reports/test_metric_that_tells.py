"""A metric that is the same everywhere, as exact match may be 0, is not what a summary is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pytest

from deltalens.catalog.metrics import first_that_tells, leading_that_tell
from deltalens.io.records import Cell, Measurement, StudyFolder, load_study
from deltalens.reports import summarize
from deltalens.reports.answers.answer import UNKNOWN
from deltalens.reports.answers.drop import drop_answers

DROP = ("strategy", "scope", "rate", "seed")
LAYERS = ("method", "size", "group", "seed")
MODELS = ("model", "training", "step")
SWEEP = ("method", "mask_ratio", "seed")

Made = tuple[str, Sequence[str], list[tuple[Any, ...]], dict[str, Any], dict[str, Any]]
"""Kind, columns, settings, specification, facts."""

STUDIES: dict[str, Made] = {
    "drop": (
        "drop-study",
        DROP,
        [("trivial", "tensor", rate, 0) for rate in (0.0, 0.5, 1.0)],
        {"changed_only": False},
        {"entries": 10, "unchanged": 0},
    ),
    "layers": (
        "layer-sweep",
        LAYERS,
        [("ft", 0, "", 0), ("drop", 1, "0", 0), ("base", 0, "", 0)],
        {"method": "drop", "groups": [1]},
        {
            "blocks": {"0": {"entries": 9, "squares": 1.0}},
            "outside": {"entries": 0, "squares": 0.0},
        },
    ),
    "models": (
        "evaluate",
        MODELS,
        [(name, "", 0) for name in "abc"],
        {"models": {}, "data": []},
        {"models": {}, "notes": []},
    ),
    "sweep": (
        "mask-ratio-sweep",
        SWEEP,
        [("sft", 0.0, 0), ("gmt", 0.2, 0), ("gmt", 0.5, 0)],
        {},
        {},
    ),
}
WHERE = {
    "drop": "for fine-tune and base alike",
    "layers": "for fine-tune and base alike",
    "models": "for every model",
    "sweep": "after every training",
}
LOSSES = (1.0, 1.5, 2.0)


def said(folder: Path, study: str, metrics: Mapping[str, Sequence[float]]) -> list[str]:
    """The sentences about a study whose cells have these values."""
    kind, columns, settings, spec, facts = STUDIES[study]
    with StudyFolder.open(folder, kind, spec, tuple(columns)) as written:
        written.facts |= facts
        written.write_manifest()
        for place, setting in enumerate(settings):
            values = {name: Measurement(of[place], 0.01, 9) for name, of in metrics.items()}
            written.append(Cell(dict(zip(columns, setting, strict=True)), values, 0.1))
    return [*summarize(load_study(folder)).sentences()]


@pytest.mark.parametrize("study", [*STUDIES])
def test_a_summary_is_about_the_metric_that_differs(study: str, tmp_path: Path) -> None:
    first, second, *_ = said(tmp_path, study, {"exact_match": (0, 0, 0), "loss": LOSSES})
    assert first == f"exact_match is 0 {WHERE[study]}, so what follows is about loss"
    assert second.startswith("loss: ")


@pytest.mark.parametrize("study", [*STUDIES])
@pytest.mark.parametrize("right", [(0.5, 0.3, 0.1), (0.02, 0.0, 0.0), (nan, 0.5, nan)])
def test_a_leading_metric_that_differs_leads(
    study: str, right: Sequence[float], tmp_path: Path
) -> None:
    sentences = said(tmp_path, study, {"exact_match": right, "loss": LOSSES})
    assert not [one for one in sentences if "so what follows" in one or "loss: " in one]
    assert any(one.startswith("exact_match: ") for one in sentences)


@pytest.mark.parametrize("study", [*STUDIES])
def test_where_no_metric_differs_the_leading_one_is_given(study: str, tmp_path: Path) -> None:
    sentences = said(tmp_path, study, {"exact_match": (0, 0, 0), "loss": (1, 1, 1)})
    assert not [one for one in sentences if "so what follows" in one or "loss: " in one]


def test_a_drop_study_without_a_difference_concludes_nothing(tmp_path: Path) -> None:
    sentences = said(tmp_path, "drop", {"a/exact_match": (0, 0, 0), "b/exact_match": (0, 0, 0)})
    assert "a/exact_match is the same for every model" in " ".join(sentences)
    assert "within" not in " ".join(sentences)
    (answer,) = drop_answers(load_study(tmp_path))
    assert answer.number == UNKNOWN
    assert answer.sentence.startswith("a/exact_match is 0 for the fine-tune, the base and every")


@pytest.mark.parametrize("between", [0.4, nan])
def test_one_model_that_differs_is_a_difference(between: float, tmp_path: Path) -> None:
    sentences = said(tmp_path, "drop", {"exact_match": (0.5, between, 0.5)})
    assert "the same for every model" not in " ".join(sentences)
    assert any(one.startswith("trivial: ") for one in sentences)


def test_each_data_set_has_its_own() -> None:
    names = ["a/exact_match", "a/loss", "a/loss@3", "b/exact_match", "b/loss", "b/speed"]
    telling = {"a/loss", "a/loss@3", "b/exact_match", "b/loss", "b/speed"}
    chosen = leading_that_tell(names, telling.__contains__)
    assert chosen == {"a/loss": "a/exact_match", "b/exact_match": "b/exact_match"}
    assert first_that_tells("b/exact_match", names, {"b/speed"}.__contains__) == "b/exact_match"
    own = {"b/speed": "higher"}
    assert first_that_tells("b/exact_match", names, {"b/speed"}.__contains__, own) == "b/speed"
    assert leading_that_tell([], bool) == {}
