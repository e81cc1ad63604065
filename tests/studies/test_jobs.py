"""The engine with several jobs: what waits for what, what a killed process means, who ends when."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deltalens import load_study
from deltalens.errors import DeltaLensError
from deltalens.io.records import Cell, Measurement, Setting, StudyFolder
from deltalens.scoring.suite import Metrics
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Execution, Report

CPU = torch.device("cpu")
COLUMNS = ("name", "point", "needs")
CELLS: list[Setting] = [
    {"name": "a", "point": "p", "needs": ""},
    {"name": "b", "point": "", "needs": "q"},
    {"name": "c", "point": "p", "needs": ""},
    {"name": "d", "point": "q", "needs": ""},
    {"name": "e", "point": "", "needs": "nobody"},
]


@dataclass(frozen=True)
class Measuring:
    """A worker that is its own recipe."""

    measure: Callable[[Setting, Report], Metrics]
    local_reason: str | None = None
    shares_threads: bool = False
    device: torch.device = CPU
    paths: tuple[Path, ...] = ()

    def prepare(self, watch: Any) -> "Measuring":
        """Nothing has to be."""
        return self

    def close(self) -> None:
        """Nor put right."""


def measure(setting: Setting, tell: Any) -> Metrics:
    """Slow, and says when it began and where it ran."""
    begun = time.time()
    tell(0, 2)
    time.sleep(0.6)
    tell(1, 2)
    time.sleep(0.6)
    return {"begun": Measurement(begun), "process": Measurement(os.getpid())}


def dies(setting: Setting, tell: Any) -> Metrics:
    """As the kernel ends what takes too much memory."""
    if setting["name"] == "d":
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(setting, tell)


def refuses(setting: Setting, tell: Any) -> Metrics:
    """Bad input that is only found in a cell."""
    raise DeltaLensError(f"cell {setting['name']}: no")


def run(path: Path, jobs: int, what: Any = measure, watch: StudyWatch | None = None) -> None:
    study = StudyFolder.open(path, "test", {}, COLUMNS)
    try:
        run_cells(
            study,
            CELLS,
            Measuring(what),
            Measuring(what),
            watch or StudyWatch(),
            point_of=lambda setting: setting["point"] or None,
            requires=lambda setting: setting["needs"] or None,
            execution=Execution(jobs=jobs),
        )
    finally:
        study.close()


def found(path: Path, metric: str) -> dict[str, float]:
    cells = load_study(path).cells
    part = cells[cells["metric"] == metric]
    return dict(zip(part["name"], part["value"], strict=True))


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_cell_once_and_in_its_turn(tmp_path: Path, jobs: int) -> None:
    shares: list[float] = []
    run(tmp_path, jobs, watch=StudyWatch(within=shares.append))
    begun, process = found(tmp_path, "begun"), found(tmp_path, "process")
    assert begun.keys() == {"a", "b", "c", "d", "e"}
    assert begun["a"] == begun["c"], "one point was measured twice"
    assert begun["b"] >= begun["d"] + 1.2, "a cell did not wait for what it builds on"
    assert (os.getpid() in process.values()) == (jobs == 1)
    assert len(set(process.values())) <= jobs
    assert max(shares) >= 0.5
    assert shares[-1] == 0, "what is done counts as a whole cell, not as a running one as well"
    table = (tmp_path / "cells.csv").read_text().splitlines()[1:]
    assert [row[0] for row in table[::2]] == ["a", "b", "c", "d", "e"]
    assert list(begun) == ["a", "b", "c", "d", "e"]


def test_a_killed_process_is_an_error_that_keeps_the_rest(tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="fewer jobs"):
        run(tmp_path, 2, dies)
    run(tmp_path, 2)
    assert len(found(tmp_path, "begun")) == 5


def test_bad_input_comes_through(tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match=r"cell .: no"):
        run(tmp_path / "study", 2, refuses)
    with pytest.raises(DeltaLensError, match="jobs 0"):
        run(tmp_path / "study", 0)


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(folder: Path, cell: Cell) -> None:
        seen.append(int(cell.metrics["process"].value))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 2, watch=StudyWatch(on_cell=stop))
    assert gone(seen)
    assert len(found(tmp_path, "begun")) == 1


def test_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from deltalens.studies.engine import StudyWatch
from tests.studies.test_jobs import run
def told(folder, cell):
    print(int(cell.metrics["process"].value), flush=True)
if __name__ == "__main__":
    run(Path({str(tmp_path)!r}), 2, watch=StudyWatch(on_cell=told))
"""
    script = tmp_path.parent / "asks.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as spec:
        assert spec.stdout is not None
        worker = int(spec.stdout.readline())
        spec.kill()
    assert gone([worker])


def gone(processes: list[int], seconds: float = 10.0) -> bool:
    """Whether they have all ended, given some time."""
    for _ in range(int(seconds / 0.1)):
        if not any(Path(f"/proc/{number}").exists() for number in processes):
            return True
        time.sleep(0.1)
    return False


def fails(setting: Setting, tell: Any) -> Metrics:
    """Every cell but the first, the reference, has a reason of its own to fail; `d` has none."""
    if setting["name"] in "be":
        raise ValueError(f"no {setting['name']}")
    return {"x": Measurement(1.0)}


def requirement_fails(setting: Setting, tell: Any) -> Metrics:
    """What `b` requires fails."""
    if setting["name"] == "d":
        raise DeltaLensError("no d")
    return {"x": Measurement(1.0)}


def same_reason(setting: Setting, tell: Any) -> Metrics:
    """Everything but the reference fails alike."""
    if setting["name"] != "a":
        raise DeltaLensError("no room")
    return {"x": Measurement(1.0)}


def reference_fails(setting: Setting, tell: Any) -> Metrics:
    """The reference alone fails."""
    if setting["name"] == "a":
        raise ValueError("no a")
    return {"x": Measurement(1.0)}


def reasons(path: Path) -> dict[str, str | None]:
    return {failure.setting["name"]: failure.reason for failure in load_study(path).failures}


@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_that_fail_are_recorded_and_asked_again(tmp_path: Path, jobs: int) -> None:
    for _ in (1, 2):
        run(tmp_path, jobs, fails)
        assert found(tmp_path, "x").keys() == {"a", "c", "d"}
        assert reasons(tmp_path) == {"b": "ValueError: no b", "e": "ValueError: no e"}
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 3, "measured twice"
    run(tmp_path, jobs, requirement_fails)
    assert reasons(tmp_path) == {}
    assert found(tmp_path, "x").keys() == {"a", "b", "c", "d", "e"}


def test_a_cell_whose_requirement_failed_fails_for_that_reason(tmp_path: Path) -> None:
    run(tmp_path, 1, requirement_fails)
    assert reasons(tmp_path) == {"d": "no d", "b": "it requires q, which failed: no d"}
    assert found(tmp_path, "x").keys() == {"a", "c", "e"}


@pytest.mark.parametrize(
    ("what", "message"), [(reference_fails, "no a"), (same_reason, "no room"), (refuses, "no")]
)
def test_what_no_cell_survives_ends_the_study(tmp_path: Path, what: Any, message: str) -> None:
    with pytest.raises((ValueError, DeltaLensError), match=message):
        run(tmp_path, 1, what)


def test_cells_that_depend_on_each_other_end_with_the_first_that_fails(tmp_path: Path) -> None:
    with (
        StudyFolder.open(tmp_path, "test", {}, COLUMNS) as study,
        pytest.raises(DeltaLensError, match="no d"),
    ):
        run_cells(study, CELLS, None, Measuring(requirement_fails), StudyWatch())
