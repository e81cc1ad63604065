"""What is said of a delta: of one that was inspected just now, and of one read from its records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from deltalens.errors import RecordError
from deltalens.io.records import load_study
from deltalens.reports import summarize
from deltalens.reports.inspect import Anatomy, InspectionSummary
from tests.support.finished_studies import make_study
from tests.support.oracles.pairs import make, write_checkpoint
from tests.support.runs import succeeds

NAMES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    base = {
        f"{name}.weight": make("normal", 400, torch.float32, at) for at, name in enumerate(NAMES)
    }
    scales = (0.01, 0.1, 1.0)
    ft = {
        name: tensor + scale * make("normal", 400, torch.float32, 9)
        for (name, tensor), scale in zip(base.items(), scales, strict=True)
    }
    ft[f"{NAMES[0]}.weight"][:300] = base[f"{NAMES[0]}.weight"][:300]
    return write_checkpoint(folder / "ft", ft), write_checkpoint(folder / "base", base)


def test_a_saved_inspection_says_what_the_command_said(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    printed = succeeds("inspect", *pair, "-o", tmp_path / "s")
    said = json.loads(succeeds("inspect", *pair, "--json"))
    record = load_study(tmp_path / "s")
    summary = summarize(record)
    for sentence in summary.sentences():
        assert f"\n{sentence}\n" in printed
    saved = json.loads(json.dumps(summary.as_json()))
    assert saved == {name: said[name] for name in ("ft", "base", "groups", "notes")}
    assert [table.title for table in summary.tables()] == ["", "by kind of projection", "by layer"]
    layers = [*summary.tables()][2]
    assert [row[0] for row in layers.rows] == ["lm_head.weight", "model.layers.0", "model.layers.1"]


def test_the_sentences_are_true(pair: tuple[Path, Path], tmp_path: Path) -> None:
    succeeds("inspect", *pair, "-o", tmp_path / "s", "-q")
    first, norm, energy, lost, layers = summarize(load_study(tmp_path / "s")).sentences()
    assert first == "25.00 % of 1,200 entries are exactly unchanged"
    assert norm.startswith("the delta's norm is 0.")
    assert energy.startswith("the largest 1 % of entries hold ")
    assert lost.startswith("casting both models to bf16 would lose ")
    assert "lm_head.weight changed most" in layers
    assert "model.layers.0 least" in layers


def test_what_was_not_measured_is_a_dash_and_not_spoken_of() -> None:
    group = Anatomy("overall", "all", 7, {"unchanged": 0.5, "vanishing_in_bf16": math.nan})
    summary = InspectionSummary("ft", "base", (group,))
    (table,) = summary.tables(["overall"])
    assert table.rows == (("all", "7", "50.0 %", "-", "-", "-", "-", "-", "-"),)
    assert [*summary.sentences()] == ["50.00 % of 7 entries are exactly unchanged"]
    assert "kept" not in summary.as_json()


def test_an_inspection_of_nothing_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path / "s", "inspect")
    (tmp_path / "s" / "cells.csv").unlink()
    (tmp_path / "s" / "cells.jsonl").write_bytes(b"")
    with pytest.raises(RecordError, match="no inspection with finished cells"):
        summarize(load_study(tmp_path / "s"))
