"""`deltalens demo gmt`: rows, trainings, two studies; made once, then shown."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deltalens import load_study
from deltalens.cli.main import app
from deltalens.demo import build, build_base, stages, tasks
from deltalens.demo.tasks import Row
from tests.support.demo import TINY, shortened, tiny_models


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command makes a tiny demo, of two steps a training."""
    tiny_models(monkeypatch)
    monkeypatch.setattr(build, "TRAINING_ROWS", 64)
    less = {"seeds": 1, "jobs": 1}
    shortened(monkeypatch, "gmt", less, {"gmt-maths": {"mask_ratios": "0.5"}})


@pytest.mark.usefixtures("tiny")
def test_both_studies_are_made_and_then_shown(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["demo", "gmt", "-o", str(tmp_path)])
    assert first.exit_code == 0, (first.output, first.exception)
    one, many = (load_study(tmp_path / name) for name in ("gmt-maths", "gmt-mixture"))
    assert set(one.cells["method"]) == {"sft", "gmt", "random-mask", "one-off-drop", "hft"}
    assert set(one.cells["mask_ratio"]) == {0.0, 0.5}
    assert {m.partition("/")[0] for m in many.cells["metric"]} - {"training_loss"} == {
        "maths_test",
        "code_test",
        "instructions_test",
    }
    assert set(many.cells["mask_ratio"]) == {0.0, 0.95, 0.99}
    for study in (one, many):
        assert f"-o {study.path}" in first.output
        assert (study.path / "gmt_fig2.png").read_bytes().startswith(b"\x89PNG")
    journals = [(study.path / "cells.jsonl").read_bytes() for study in (one, many)]
    again = CliRunner().invoke(app, ["demo", "gmt", "-o", str(tmp_path)])
    assert again.exit_code == 0
    assert journals == [(study.path / "cells.jsonl").read_bytes() for study in (one, many)]


def test_rows_to_train_on_hold_no_row_that_is_measured(tmp_path: Path) -> None:
    paths = build_base(tmp_path, recipe=TINY)

    def prompts(file: Path) -> list[str]:
        return [json.loads(line)["prompt"] for line in file.read_text().splitlines()]

    held_out = {
        prompt
        for files in paths.data.values()
        for file in files.values()
        for prompt in prompts(file)
    }
    everything = set(held_out)
    for file in paths.training.values():
        learned = prompts(file)
        count = build.FEW_ROWS if "few" in file.name else build.TRAINING_ROWS
        assert len(learned) == count * (3 if "mixture" in file.name else 1)
        assert not held_out & set(learned)
        everything |= set(learned)
    for file in paths.unseen.values():
        unseen = prompts(file)
        assert len(set(unseen)) == len(unseen) == TINY.test_rows
        assert not everything & set(unseen)


def test_unseen_rows_were_not_in_the_bases_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Row] = []
    rows_of = stages.stream

    def keeping(*args: Any, **kwargs: Any) -> Iterator[Row]:
        for row in rows_of(*args, **kwargs):
            learned.append(row)
            yield row

    monkeypatch.setattr(stages, "stream", keeping)
    monkeypatch.setattr(build, "TRAINING_ROWS", 8)
    monkeypatch.setattr(build, "FEW_ROWS", 8)
    # So few problems that a third of them is unseen, and some would be learned by chance.
    monkeypatch.setattr(tasks, "sample_number", lambda rng: f"{rng.randrange(60):02d}")
    paths = build_base(
        tmp_path, recipe=replace(TINY, domain_weight=1.0, base_steps=40, test_rows=300)
    )
    unseen = paths.unseen["code"].read_text().splitlines()
    assert len(unseen) == 300
    assert not {json.loads(line)["prompt"] for line in unseen} & {row.prompt for row in learned}
