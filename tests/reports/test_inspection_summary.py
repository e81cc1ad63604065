"""What is said of a delta: of one that was inspected just now, and of one read from its records."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import deltalens
from deltalens.errors import RecordError
from deltalens.io.records import Cell, Measurement, StudyFolder, load_study
from deltalens.reports import summarize
from deltalens.reports.anatomy import NEXT, Anatomy, most
from deltalens.reports.answers import answers_of
from deltalens.reports.inspect import InspectionSummary, summarize_inspection
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
    assert [row[0] for row in layers.rows] == ["model.layers.0", "model.layers.1", "lm_head.weight"]


def test_the_sentences_are_true(pair: tuple[Path, Path], tmp_path: Path) -> None:
    succeeds("inspect", *pair, "-o", tmp_path / "s", "-q")
    record = load_study(tmp_path / "s")
    first, norm, layers, kinds, energy, lost, then = summarize(record).sentences()
    assert first == "25 % of 1,200 entries are exactly as in the base; the other 75 % changed."
    cells = record.cells[record.cells["level"] == "overall"].set_index("metric")["value"]
    found = cells["relative_norm"]
    assert norm.startswith(f"The delta's norm is {found:.3g} times that of the base's weights: by ")
    assert f"a change is {1 / found:.3g} times smaller than a weight" in norm
    assert "the layer that changed most is lm_head.weight" in layers
    assert "least model.layers.0" in layers
    assert "the kind of projection that changed most is lm_head" in kinds
    assert energy.startswith("Of the delta's squared norm, the largest 1 % of entries hold ")
    assert "more than in a normal distribution" in energy
    assert lost.startswith("Casting both models to bf16 would lose ")
    assert then == NEXT


def test_terminal_object_and_report_say_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    printed = succeeds("inspect", *pair, "-o", tmp_path / "s")
    record = load_study(tmp_path / "s")
    said = [*summarize(record).sentences()]
    assert deltalens.inspect(*pair).summary().splitlines()[: len(said)] == said
    assert deltalens.load_study(tmp_path / "s").summary().splitlines()[: len(said)] == said
    assert printed.count(NEXT) == 1
    for answer in answers_of(record):
        assert any(sentence in answer.sentence for sentence in said)


def whole(**metrics: float) -> InspectionSummary:
    return InspectionSummary("ft", "base", (Anatomy("overall", "all", 1000, metrics),))


@pytest.mark.parametrize(
    ("unchanged", "said"),
    [
        (1.0, "None of 1,000 entries changed: the fine-tune is the base."),
        (0.0, "Every one of 1,000 entries changed."),
        (0.5, "50 % of 1,000 entries are exactly as in the base; the other 50 % changed."),
    ],
)
def test_how_much_changed_is_said_first(unchanged: float, said: str) -> None:
    first, *others = whole(unchanged=unchanged).sentences()
    assert first == said
    assert others == ([] if unchanged == 1 else [NEXT])


def test_what_is_not_all_is_not_said_to_be_all() -> None:
    first, *_ = whole(unchanged=1e-6).sentences()
    assert first.startswith("Under 0.01 % of ")
    assert first.endswith("exactly as in the base; the other over 99.99 % changed.")


@pytest.mark.parametrize(
    ("tenth", "said"),
    [(0.9, "more than in"), (0.43, "about as in"), (0.2, "less than in")],
)
def test_concentration_is_told_beside_a_normal_distribution(tenth: float, said: str) -> None:
    (sentence, _) = whole(**{"energy_top_0.01": 0.05, "energy_top_0.1": tenth}).sentences()
    assert f"{said} a normal distribution" in sentence
    normal = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = normal.square().sort(descending=True).values
    parts = [float(100 * squares[:n].sum() / squares.sum()) for n in (10_000, 100_000)]
    named = [float(part.removesuffix(" %")) for part in sentence[:-2].split("(")[1].split(" and ")]
    assert named == pytest.approx(parts, rel=0.01)


@pytest.mark.parametrize(
    ("lost", "said"), [(0.0, "would lose none"), (0.25, "would lose 25 %"), (math.nan, None)]
)
def test_a_cast_to_bf16_loses_what_it_loses(lost: float, said: str | None) -> None:
    sentences = [*whole(vanishing_in_bf16=lost).sentences()]
    assert [said in sentence for sentence in sentences[:-1] if said] == [True] * (said is not None)


def layers(**norms: float) -> list[Anatomy]:
    return [Anatomy("layer", name, 9, {"relative_norm": norm}) for name, norm in norms.items()]


@pytest.mark.parametrize(
    ("norms", "said"),
    [
        ({"a": 0.1}, ""),
        ({"a": 0.1, "b": math.nan}, ""),
        (
            {"a": 0.1, "b": 0.1},
            "Relative to its weights, every layer changed alike (‖δ‖ / ‖base‖ = 0.1).",
        ),
        (
            {"a": 0.2, "b": 0.2, "c": 0.1, "d": math.nan},
            "Relative to its weights, the layer that changed most is a, b (‖δ‖ / ‖base‖ = 0.2), "
            "and least c (0.1).",
        ),
        (
            {"a": 0.0, "b": 0.2, "c": 0.0},
            "Relative to its weights, the layer that changed most is b (‖δ‖ / ‖base‖ = 0.2), and "
            "a, c are exactly as in the base.",
        ),
    ],
)
def test_where_a_delta_is_largest(norms: dict[str, float], said: str) -> None:
    assert most(layers(**norms), "layer") == said


def test_what_was_not_measured_is_a_dash_and_not_spoken_of() -> None:
    group = Anatomy("overall", "all", 7, {"unchanged": 0.5, "vanishing_in_bf16": math.nan})
    summary = InspectionSummary("ft", "base", (group,))
    (table,) = summary.tables(["overall"])
    assert table.rows == (("all", "7", "50.0 %", "-", "-", "-", "-", "-", "-"),)
    assert len([*summary.sentences()]) == 2
    assert "kept" not in summary.as_json()


def test_layers_of_early_records_stand_in_the_order_of_the_model(tmp_path: Path) -> None:
    study = StudyFolder.open(tmp_path / "s", "inspect", {}, ("level", "name"))
    study.facts = {"per_octave": 4, "histograms": {}, "notes": []}
    study.write_manifest()
    for name in ("h.10", "h.2", "lm_head.weight", "wte.weight"):
        study.append(Cell({"level": "layer", "name": name}, {"kurtosis": Measurement(3.0, n=9)}, 0))
    study.close()
    groups = summarize_inspection(load_study(tmp_path / "s")).groups
    assert [group.name for group in groups] == ["wte.weight", "h.2", "h.10", "lm_head.weight"]


def test_an_inspection_of_nothing_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path / "s", "inspect")
    (tmp_path / "s" / "cells.csv").unlink()
    (tmp_path / "s" / "cells.jsonl").write_bytes(b"")
    with pytest.raises(RecordError, match="no inspection with finished cells"):
        summarize(load_study(tmp_path / "s"))
