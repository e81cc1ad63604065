"""What the functions that read return says in one line what it is, however long its path is."""

from __future__ import annotations

from pathlib import Path

import pytest

import deltalens
from deltalens.io.records import RunWriter, load_training
from deltalens.io.records.training_record import TRAINING
from tests.support.checkpoint_files import save, tuned, weights
from tests.support.finished_studies import KINDS, make_study

LONGEST = 400


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder with a long path, and a name that would write on a terminal."""
    folder = tmp_path / "\x1b[2J" / ("d" * 200) / ("e" * 200)
    folder.mkdir(parents=True)
    return folder


def shown(value: object) -> str:
    text = repr(value)
    assert len(text) < LONGEST
    assert text.isprintable()
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_says_its_kind_and_how_many_cells_it_has(deep: Path, kind: str) -> None:
    study = deltalens.load_study(make_study(deep / "study", kind))
    columns = [name for name in study.cells.columns[: -len(("metric", "value", "stderr", "n"))]]
    cells = len({tuple(row) for row in study.cells[columns].itertuples(index=False)})
    text = shown(study)
    assert "/study: " in text
    assert f": {study.kind}, {cells} finished cells, " in text


def test_a_run_says_how_many_steps_and_rows_it_has(deep: Path) -> None:
    with RunWriter(deep / "run", {}) as writer:
        for step in (1, 2, 3):
            writer.add("tensors", {"step": [step] * 2, "tensor": ["a", "b"]} | sizes(2))
    text = shown(deltalens.load_run(deep / "run"))
    assert "/run: 3 logged steps of 2 tensors; 0 rows in histograms, 6 rows in tensors" in text


def sizes(rows: int) -> dict[str, list[float]]:
    whole = ("entries", "zeros", "subnormals", "infinities", "nans")
    real = ("norm", "mean", "q50", "q90", "q99", "q999")
    return {name: [1] * rows for name in whole} | {name: [1.0] * rows for name in real}


def test_a_training_says_its_method_and_whether_it_is_finished(deep: Path) -> None:
    TRAINING.write(deep, {"asked": {"method": "gmt"}, "facts": {}})
    assert shown(load_training(deep)).endswith(": gmt, not finished>")
    (deep / "config.json").write_text("{}")
    assert shown(load_training(deep)).endswith(": gmt, finished>")


def test_checkpoints_and_pairs_say_how_many_tensors_they_have(deep: Path) -> None:
    base = weights()
    entries = sum(tensor.numel() for tensor in base.values())
    ft, before = save(deep / "ft", tuned(base)), save(deep / "base", base)
    counted = f"{len(base)} tensors, {entries:,} entries"
    assert shown(deltalens.open_checkpoint(ft)).endswith(f"/ft: {counted}, 1 file>")
    text = shown(deltalens.pair(ft, before))
    assert "/ft with " in text
    assert f"/base: {counted}; 0 tensors in the fine-tune only, 0 in the base only>" in text
