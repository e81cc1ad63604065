"""A metric of the caller's own: which way it is better is said, and decides no number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import deltalens
from deltalens.io.records import StudyRecord
from deltalens.reports.drop import summarize_drop_study
from deltalens.reports.landscape import summarize_landscape
from deltalens.reports.layers import summarize_layers
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.studies import sweep_layers_drop

Study = Callable[..., StudyRecord]


def score(model: nn.Module) -> dict[str, float]:
    return {"score": float(next(model.parameters()).double().norm())}


def drop_study(pair: Pair, out: Path, **more: Any) -> StudyRecord:
    return deltalens.drop_study(
        pair.ft, pair.base, out, metric=score, rates="0.5", strategies=["trivial"], **more
    )


def layers(pair: Pair, out: Path, **more: Any) -> StudyRecord:
    return sweep_layers_drop(pair.ft, pair.base, out, metric=score, **more)


def landscape(pair: Pair, out: Path, **more: Any) -> StudyRecord:
    return deltalens.scan_landscape(pair.ft, out, others=[pair.base], grid=3, metric=score, **more)


SUMMARIES: dict[str, Callable[[StudyRecord], Any]] = {
    "drop-study": summarize_drop_study,
    "layer-sweep": summarize_layers,
    "landscape": summarize_landscape,
}


@pytest.mark.parametrize("study", [drop_study, layers, landscape])
def test_direction_can_be_said_later_and_changes_no_number(
    pair_of: PairOf, tmp_path: Path, study: Study
) -> None:
    pair, out = pair_of(family="llama"), tmp_path / "s"
    silent = study(pair, out)
    said = " ".join(SUMMARIES[silent.kind](silent).sentences())
    assert "unknown whether higher or lower is better" in said
    journal, table = ((out / name).read_bytes() for name in ("cells.jsonl", "cells.csv"))
    for way in ("higher", "lower"):
        record = study(pair, out, better={"score": way})
        assert record.facts["better"] == {"score": way}
        assert record.spec == silent.spec
        spoken = " ".join(SUMMARIES[record.kind](record).sentences())
        assert "higher or lower is better" not in spoken
    # Said once, it stays; nothing was measured again.
    assert study(pair, out).facts["better"] == {"score": "lower"}
    assert (out / "cells.jsonl").read_bytes() == journal
    assert (out / "cells.csv").read_bytes() == table
    assert "better" not in json.loads((out / "study.json").read_text())["asked"]


@pytest.mark.parametrize("study", [drop_study, layers, landscape])
def test_other_words_for_a_direction_are_refused_before_any_work(
    pair_of: PairOf, tmp_path: Path, study: Study
) -> None:
    with pytest.raises(deltalens.DeltaLensError, match="'score' is 'max'; write 'higher' or"):
        study(pair_of(family="llama"), tmp_path / "s", better={"score": "max"})
    assert not (tmp_path / "s").exists()
