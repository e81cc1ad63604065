"""Studies on Ray: the tables of one process, byte for byte, whatever becomes of the workers."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.io.records import Failure, Measurement, Setting, StudyFolder, StudyRecord, load_study
from deltalens.numerics.workers import one_thread
from deltalens.scoring.suite import Metrics
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Execution, Report, WorkerPool
from deltalens.studies.executors.ray_cluster import RayExecutor
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.runs import journal, table, write_rows
from tests.support.training_folders import write_model

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # As `RayExecutor` does.
ray = pytest.importorskip("ray")

ROWS = [{"prompt": f"{a}+{b}>", "completion": f"={a + b}"} for a in range(3) for b in range(3)]
CELLS: list[Setting] = [{"name": name} for name in "abcdef"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests: deltalens uses the one that a process is connected to."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="CRITICAL",
        object_store_memory=100_000_000,
    )
    signal.signal(signal.SIGTERM, handler)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def pair(pair_of: PairOf) -> Pair:
    return pair_of(family="llama")


@dataclass(frozen=True)
class Recipe:
    """A worker that is its own recipe, and has no model."""

    what: Callable[[Setting, Path], Metrics]
    folder: Path
    paths: tuple[Path, ...] = ()
    local_reason: str | None = None
    shares_threads: bool = False
    device: torch.device = field(default=CPU)

    def prepare(self, watch: Any) -> "Recipe":
        """Nothing has to be."""
        return self

    def measure(self, setting: Setting, report: Report) -> Metrics:
        """Log who measures what, and measure it."""
        with (self.folder / "log").open("a") as log:
            log.write(f"{setting['name']} {os.getpid()}\n")
        time.sleep(0.6)  # More often than twice a second is not told.
        report(1, 2)
        time.sleep(0.6)
        return self.what(setting, self.folder)

    def close(self) -> None:
        """Nothing has to be put right."""


def measure(setting: Setting, folder: Path) -> Metrics:
    """A number that depends on the cell alone."""
    return {"x": Measurement(float(ord(setting["name"])))}


def dies_once(setting: Setting, folder: Path) -> Metrics:
    """At one cell the worker is killed, once, as by the kernel; another fails whenever tried."""
    if setting["name"] == "c" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if setting["name"] == "e":
        raise ValueError("no e")
    return measure(setting, folder)


def dies(setting: Setting, folder: Path) -> Metrics:
    """One cell kills every worker."""
    if setting["name"] == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(setting, folder)


def run(folder: Path, what: Any, jobs: int = 2, **options: Any) -> list[float]:
    """A study of `CELLS`; the progress within its cells."""
    within: list[float] = []
    recipe = Recipe(what, folder, (folder / "study",))
    execution = Execution(executor="ray", jobs=jobs, cpus_per_worker=1, **options)
    study = StudyFolder.open(folder / "study", "test", {}, ("name",))
    try:
        run_cells(
            study, CELLS, recipe, recipe, StudyWatch(within=within.append), execution=execution
        )
    finally:
        study.close()
    return within


def measured(folder: Path) -> dict[str, float]:
    cells = load_study(folder / "study").cells
    return dict(zip(cells["name"], cells["value"], strict=True))


def tries(folder: Path, name: str) -> int:
    return (folder / "log").read_text().count(f"{name} ")


def test_a_drop_study_has_the_table_of_one_process(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with paths that begin in a folder which is not the cluster's."""
    monkeypatch.chdir(tmp_path)
    ft, base = (os.path.relpath(model) for model in (pair.ft, pair.base))
    study = partial(deltalens.drop_study, ft, base, rates="0.5", seeds=2, fidelity_tokens=4)
    with one_thread():
        compare(study, Path())


def compare(study: Callable[..., StudyRecord], folder: Path) -> None:
    """The same study here and on Ray."""
    here = study(out=folder / "here")
    there = study(out=folder / "there", executor="ray", jobs=2, cpus_per_worker=1)
    assert table(folder / "here") == table(folder / "there")
    assert here.spec == there.spec
    assert here.facts == there.facts
    # Nor is it another study: a process goes on where Ray stopped.
    assert study(out=folder / "there").spec == here.spec


@pytest.mark.slow
def test_a_sweep_over_layers_has_the_table_of_one_process(pair: Pair, tmp_path: Path) -> None:
    study = partial(deltalens.sweep_layers_drop, pair.ft, pair.base, fidelity_tokens=4)
    with one_thread():
        compare(study, tmp_path)


@pytest.mark.slow
def test_a_landscape_has_the_table_of_one_process(pair: Pair, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    study = partial(
        deltalens.scan_landscape, pair.ft, others=[pair.base], grid=5, data=rows, limit=4
    )
    with one_thread():
        compare(study, tmp_path)


@pytest.mark.slow
def test_a_sweep_of_trainings_has_the_table_of_one_process(tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / "rows.jsonl", ROWS), write_model(tmp_path / "base")
    study = partial(
        deltalens.sweep_mask_ratio,
        "gmt,one-off-drop",
        model,
        rows,
        eval_data=rows,
        mask_ratios="0.5",
        seeds=2,
        steps=2,
        batch_size=2,
    )
    with one_thread():
        compare(study, tmp_path)


def test_the_cell_of_a_killed_worker_is_measured_again_and_one_that_fails_is_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for asked in (1, 2):
        within = run(tmp_path, dies_once)
        assert max(within) > 0, "no progress within a cell"
        assert measured(tmp_path) == {name: float(ord(name)) for name in "abcdf"}
        assert len(journal(tmp_path / "study")) == 5, "one was measured twice"
        assert [tries(tmp_path, name) for name in "abcdef"] == [1, 1, 2, 1, asked, 1]
        (failure,) = load_study(tmp_path / "study").failures
        assert failure == Failure({"name": "e"}, "ValueError: no e")
    assert capfd.readouterr().out == "", "a command prints JSON there"


@pytest.mark.slow
def test_a_cell_that_kills_every_worker_fails_and_is_asked_again(tmp_path: Path) -> None:
    for asked in (1, 2):
        run(tmp_path, dies, jobs=1)
        (failure,) = load_study(tmp_path / "study").failures
        assert failure.setting == {"name": "c"}
        assert "3 workers died" in str(failure.reason)
        assert tries(tmp_path, "c") == 3 * asked
        assert measured(tmp_path).keys() == {*"abdef"}
    run(tmp_path, measure)
    assert load_study(tmp_path / "study").failures == ()
    assert measured(tmp_path).keys() == {*"abcdef"}


def test_workers_without_room_are_an_error_and_no_wait(tmp_path: Path) -> None:
    recipe = Recipe(measure, tmp_path)
    executor = RayExecutor(cpus=2, patience=1)
    with (
        pytest.raises(DeltaLensError, match=r"no room for 3 workers with 2 CPU each: 2 CPU in all"),
        executor(recipe, recipe, 3, lambda cells: None),
    ):
        pytest.fail("there is room")
    assert ray.available_resources()["CPU"] == 2, "the places are still reserved"


def test_another_cluster_than_the_one_that_is_connected_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(measure, tmp_path)
    connected = ray.get_runtime_context().gcs_address
    with socket.create_server(("127.0.0.1", 0)) as other:
        executor = RayExecutor(address=f"127.0.0.1:{other.getsockname()[1]}", cpus=1)
        with (
            pytest.raises(DeltaLensError, match=f"connected to the Ray cluster at {connected}"),
            executor(recipe, recipe, 1, lambda cells: None),
        ):
            pytest.fail("it is used")
    for same in (connected, f"localhost:{connected.rpartition(':')[2]}", "auto"):
        with RayExecutor(address=same, cpus=1)(recipe, recipe, 1, lambda cells: None):
            pass


def listen_forever(pool: WorkerPool[Any]) -> None:
    """As a study does while its cells are measured."""
    while True:
        pool.listen()
        time.sleep(0.1)


def moved(setting: Setting, folder: Path) -> Metrics:
    """Never called."""
    raise AssertionError


def test_a_worker_that_sees_other_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    same.write_text("1"), other.write_text("1")
    recipe = Recipe(moved, tmp_path, (same, other))
    executor = RayExecutor(cpus=1)
    with executor(recipe, recipe, 1, lambda cells: None) as pool:
        other.write_text("2")  # As if the worker's machine had another file there.
        with pytest.raises(DeltaLensError, match="does not see the study's files") as raised:
            listen_forever(pool)
    assert f"{other}: is another file there" in str(raised.value)
    assert f"{same}:" not in str(raised.value)


def test_a_metric_that_cannot_travel_is_an_error(pair: Pair, tmp_path: Path) -> None:
    lock = threading.Lock()

    def metric(model: Any) -> float:
        with lock:
            return 1.0

    with pytest.raises(DeltaLensError, match="'ray': what is measured cannot be sent"):
        deltalens.drop_study(
            pair.ft, pair.base, tmp_path / "s", metric=metric, executor="ray", rates="0.5"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "127.0.0.1:1"}, "only executor 'ray' takes it"),
        ({"executor": "ray", "gpus_per_worker": 1.0}, "models are loaded on 'cpu'"),
        ({"executor": "ray", "gpus_per_worker": -1.0}, "-1: a whole number, or a part of one GPU"),
        ({"executor": "ray", "gpus_per_worker": 1.5}, "1.5: a whole number, or a part of one GPU"),
        ({"executor": "ray", "devices": "cpu,cpu"}, "those of the executor 'processes'"),
        ({"devices": "cuda:0,cpu"}, "all of one kind"),
        ({"devices": "cpu,cpu", "jobs": 3}, "one for each of the 3 jobs"),
        ({"devices": "cuda:77"}, "there is no cuda:77"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    pair: Pair, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DeltaLensError, match=message):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", device="auto", **options)
    assert not (tmp_path / "s").exists()
