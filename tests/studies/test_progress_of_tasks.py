"""A cell that measures standard tasks tells how many of its requests are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltalens.scoring.tasks.scoring import StandardTasks
from deltalens.scoring.tasks.selection import TaskSelection
from deltalens.studies.engine import StudyWatch
from deltalens.studies.mask_ratio import sweep_mask_ratio
from deltalens.studies.training_plans import TrainingData
from tests.support.checkpoint_pairs import Pair
from tests.support.specs import run_study
from tests.support.standard_tasks import gsm8k_rows, write_pair, write_rows, write_tasks
from tests.support.studies import drop_study, evaluate, scan_landscape, sweep_layers_drop

GENERATING = 8
"""Documents of GSM8K, each with up to 256 tokens: seconds, even on a fast machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write_tasks(made / "tasks")
    write_rows(made / "gsm8k.jsonl", gsm8k_rows(GENERATING))
    return made


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return write_pair(folder)


def once_each(told: list[float]) -> list[float]:
    """Without the zeros between cells, and repetitions."""
    return sorted({round(part, 6) for part in told} - {0.0})


@pytest.mark.parametrize("kind", ["drop", "layers", "landscape", "evaluate"])
def test_every_study_tells_of_every_request(
    folder: Path, pair: Pair, kind: str, tmp_path: Path
) -> None:
    told: list[float] = []
    measuring: dict[str, Any] = {
        "tasks": ["choice"],
        "include_path": folder / "tasks",
        "limit": 2,
        "watch": StudyWatch(within=told.append),
    }
    out = tmp_path / "study"
    if kind == "drop":
        drop_study(pair.ft, pair.base, out, rates="0,1", seeds=1, **measuring)
    elif kind == "layers":
        sweep_layers_drop(pair.ft, pair.base, out, groups=[1], **measuring)
    elif kind == "landscape":
        scan_landscape(pair.ft, out, others=[pair.base], grid=3, **measuring)
    else:
        evaluate({"ft": pair.ft, "base": pair.base}, out, **measuring)
    # Two documents with three choices each.
    assert once_each(told) == [round(done / 6, 6) for done in range(1, 7)]


def test_steps_of_a_training_and_requests_after_it_are_steps_of_one_cell(
    folder: Path, pair: Pair, tmp_path: Path
) -> None:
    told: list[float] = []
    chosen = TaskSelection.of(["choice"], include_path=folder / "tasks", limit=2)
    assert chosen is not None
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "so", "completion": " it is"}] * 8)
    source = TrainingData(model=pair.base, data=rows, tasks=StandardTasks(chosen))
    run_study(
        sweep_mask_ratio,
        ["gmt"],
        source,
        tmp_path / "study",
        {"steps": 4, "batch_size": 2},
        mask_ratios="0.5",
        seeds=1,
        watch=StudyWatch(within=told.append),
    )
    first = told[: told.index(0.0)]
    assert first == sorted(first)
    assert once_each(first) == [done / 10 for done in range(1, 11)]


@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=pytest.mark.slow)])
def test_workers_elsewhere_tell_of_requests(
    folder: Path, pair: Pair, executor: str, tmp_path: Path
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    told: list[float] = []
    drop_study(
        pair.ft,
        pair.base,
        tmp_path / "study",
        rates="0,1",
        strategies=["trivial"],
        tasks=[f"gsm8k={folder / 'gsm8k.jsonl'}"],
        jobs=2,
        executor=executor,
        watch=StudyWatch(within=told.append),
    )
    assert once_each(told), "no progress within a cell"
    assert max(told) <= 2
