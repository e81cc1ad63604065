"""Several variants of one method in one study: how they are called, found again and told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltalens import load_study
from deltalens.catalog.looks import looks_of
from deltalens.errors import DeltaLensError, RecordError
from deltalens.figures import draw
from deltalens.reports.trainings import summarize_sweep
from deltalens.studies.efficiency import efficiency
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.mft_sweeps import compare, sweep_data_ratio
from deltalens.studies.training_plans import TrainingData
from deltalens.training.methods import labelled, method_of, read_methods
from deltalens.training.spec import TrainingSpec
from tests.support.fake_training import FakeTraining, fake_trainings
from tests.support.runs import command
from tests.support.specs import run_study

SCOPES = ["gmt:scope=global", "gmt:scope=tensor"]


@pytest.fixture
def source(base: Path, rows: Path) -> TrainingData:
    return TrainingData(model=base, data=rows, eval_data=[rows])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    return fake_trainings(monkeypatch)


def files(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "cells.csv").read_bytes(), (folder / "study.json").read_bytes()


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("gmt:scope=global", ["gmt"]),
        ("gmt:scope=global,gmt:scope=tensor", ["gmt:scope=global", "gmt:scope=tensor"]),
        ("gmt,gmt:scope=global", ["gmt", "gmt:scope=global"]),
        ("gmt,gmt:scope=tensor,gmt:mask-ratio=0.20", ["gmt"]),
        (
            "gmt:mask-ratio=0.50:scope=global,gmt:scope=layer,sft",
            ["gmt:mask-ratio=0.5:scope=global", "gmt:scope=layer", "sft"],
        ),
        (
            "gmt:apply-to=update:scope=global,gmt:include=a.b",
            ["gmt:scope=global:apply-to=update", "gmt:include=a.b"],
        ),
        ("l1-mask:complement,l1-mask", ["l1-mask:complement=true", "l1-mask"]),
    ],
)
def test_a_method_is_called_by_its_name_and_a_variant_by_what_was_typed_for_it(
    typed: str, labels: list[str]
) -> None:
    assert [*labelled(read_methods(typed))] == labels


def test_a_variant_made_in_python_is_called_by_what_is_not_the_default() -> None:
    methods = [method_of("gmt"), method_of("gmt", scope="global", mask_ratio=0.5)]
    assert [*labelled(methods)] == ["gmt", "gmt:mask-ratio=0.5:scope=global"]


def test_variants_that_their_labels_cannot_tell_apart_are_refused() -> None:
    typed = [*read_methods("gmt:scope=global", ["exclude=mlp"]), *read_methods("gmt:scope=global")]
    with pytest.raises(DeltaLensError, match="gmt:scope=global: given twice, with different"):
        labelled(typed)


def test_each_variant_has_cells_settings_and_numbers_of_its_own(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    record = run_study(compare, ["sft", *SCOPES], source, tmp_path / "s", seeds=2)
    cells = record.cells[record.cells["metric"] == "loss"]
    assert [*dict.fromkeys(cells["method"])] == ["ft", "sft", *SCOPES]
    assert record.setting("scope", SCOPES[0]) == "global"
    assert cells["value"].nunique() == len(cells) == 7
    alone = run_study(compare, SCOPES[0], source, tmp_path / "alone", seeds=2).cells
    one, other = cells[cells["method"] == SCOPES[0]], alone[alone["method"] == "gmt"]
    assert [*one["value"]] == [*other[other["metric"] == "loss"]["value"]]


PARTS: dict[str, tuple[list[list[str]], bool]] = {
    "variants first": ([SCOPES, ["gmt:scope=layer"]], True),
    "another variant alone": ([["gmt", SCOPES[0]], [SCOPES[0], "gmt:scope=layer"]], True),
    "the default first": ([["gmt"], ["gmt", SCOPES[0]]], True),
    "one variant first": ([[SCOPES[0]], SCOPES], False),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_study_with_another_variant_finds_its_old_cells(
    source: TrainingData, fake: FakeTraining, tmp_path: Path, name: str
) -> None:
    """A study that began with one variant calls that one by the method's name for good; apart from
    this it equals one call for all of it."""
    parts, same = PARTS[name]
    union = list(dict.fromkeys(one for part in parts for one in part))
    run_study(compare, union, source, tmp_path / "whole", seeds=2)
    calls = fake.calls
    for part in parts:
        run_study(compare, part, source, tmp_path / "s", seeds=2)
    assert fake.calls == 2 * calls, "nothing is trained twice"
    grown, whole = (load_study(tmp_path / one).cells for one in ("s", "whole"))
    assert sorted(grown["value"]) == sorted(whole["value"])
    if same:
        assert files(tmp_path / "s") == files(tmp_path / "whole")
    else:
        assert [*dict.fromkeys(grown["method"])] == ["ft", "gmt", SCOPES[1]]
    for part in parts:
        run_study(compare, part, source, tmp_path / "s", seeds=2)
    assert fake.calls == 2 * calls


def test_another_variant_given_alone_is_refused_with_what_differs(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    run_study(compare, SCOPES[0], source, tmp_path / "s", seeds=1)
    with pytest.raises(RecordError, match=r"settings\.gmt\.scope: 'global' in the folder, 'tens"):
        run_study(compare, SCOPES[1], source, tmp_path / "s", seeds=1)


def test_variants_grow_in_sweeps_and_ratio_0_is_trained_once(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    axes: dict[str, Any] = {"mask_ratios": "0.5", "seeds": 1}
    drops = ["one-off-drop", "one-off-drop:scope=global"]
    record = run_study(sweep_mask_ratio, SCOPES, source, tmp_path / "s", **axes)
    assert fake.calls == 3, "plain fine-tuning and one training of each variant"
    assert {*record.cells["method"]} == {"sft", *SCOPES}
    parts = run_study(sweep_data_ratio, SCOPES, source, tmp_path / "d", data_ratios="1", seeds=1)
    assert {*parts.cells["method"]} == {"ft", "sft", *SCOPES}
    assert drops == [*labelled(read_methods(drops))]


def test_they_stand_apart_in_tables_sentences_and_pictures(
    source: TrainingData, fake: FakeTraining, tmp_path: Path
) -> None:
    record = run_study(compare, ["sft", *SCOPES], source, tmp_path / "s", seeds=2)
    summary = summarize_sweep(record)
    (table,) = summary.tables()
    assert [row[:2] for row in table.rows[2:]] == [(scope, "ft") for scope in SCOPES]
    assert all(scope in " ".join(summary.sentences()) for scope in SCOPES)
    assert draw(tmp_path / "s")
    run_study(sweep_mask_ratio, SCOPES, source, tmp_path / "r", mask_ratios="0.5", seeds=2)
    assert draw(tmp_path / "r")
    many = [f"gmt:mask-ratio=0.{n}" for n in range(1, 30)]
    looks = looks_of(["sft", *many], on_base=True)
    assert looks[many[0]].color == looks_of(["gmt"], on_base=True)["gmt"].color
    assert looks[many[0]].label == "GMT (mask-ratio=0.1)"
    assert len({(look.color, look.marker) for look in looks.values()}) == 30


def test_kept_models_and_results_of_variants_lie_apart(base: Path, rows: Path) -> None:
    """A label can hold a pattern with slashes, and a LoRA is continued from its own first half."""
    source = TrainingData(model=base, data=rows, eval_data=[rows])
    out = rows.parent / "kept"
    spec = {"steps": 1, "batch_size": 8, "learning_rate": 1e-2}
    methods = ["gmt:include=a/b|mlp", "gmt:include=a.b|mlp", "lora:lora-rank=2"]
    methods += ["lora-continued:lora-rank=4"]
    record = run_study(
        compare, methods, source, out, spec, base=base, seeds=1, keep_checkpoints=True
    )
    kept = sorted(file.name for file in (out / "checkpoints").iterdir())
    assert len(kept) == 4
    assert all("/" not in name and ":" not in name for name in kept)
    assert record.setting("lora_rank", "lora-continued") == 4


def test_the_efficiency_study_times_each_variant(base: Path, rows: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"methods": read_methods(SCOPES), "repeats": 1, "steps": 1}
    record = efficiency(base, rows, tmp_path / "s", TrainingSpec(batch_size=8), **how)
    assert record.spec["methods"] == ["sft", *SCOPES]
    assert {*record.cells["method"]} == {"sft", *SCOPES}


def test_as_a_user_types_it(source: TrainingData, fake: FakeTraining, tmp_path: Path) -> None:
    rows = ["--train-data", source.data, "--eval-data", source.data, "--seeds", 1]
    methods = ",".join(SCOPES)
    done = command("compare", methods, source.model, *rows, "-o", tmp_path / "s")
    assert done.exit_code == 0, done.output
    assert all(scope in done.output for scope in SCOPES)
