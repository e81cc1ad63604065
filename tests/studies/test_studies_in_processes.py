"""Drop studies, sweeps over layers and landscapes with several jobs: the tables of one, byte for
byte, also where sums depend on the number of threads."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.scoring import memory
from tests.support.checkpoint_pairs import Pair, fine_tune
from tests.support.models import save, tiny, tokenizer
from tests.support.packages import install
from tests.support.quadratics import quadratics
from tests.support.runs import FEW, command, journal, table, write_rows
from tests.support.studies import drop_study

ROWS = [{"prompt": f"{a}+{b}>", "completion": f"={a + b}"} for a in range(6) for b in range(6)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """So wide that matrix products on one thread and on two are summed in different orders."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    model = tiny(
        "llama",
        vocab_size=len(tokenizer()),
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    save(model, folder / "base")
    fine_tune(model, scale=0.02)
    save(model, folder / "ft")
    return Pair(folder / "ft", folder / "base")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


def spec(kind: str, pair: Pair, rows: Path) -> list[str]:
    """A study of the kind, as a command."""
    measured = ["--data", str(rows), "--limit", "9"]
    small = ["--metrics", "loss,kl,exact_match"]
    few = ["--fidelity-tokens", "4"]
    return {
        "drop": [
            *("drop-study", str(pair.ft), str(pair.base), "--rates", "0.5", "--seeds", "1"),
            *measured,
            *small,
            *few,
        ],
        "layers": [
            *("sweep", "layers-drop", str(pair.ft), str(pair.base), "--group-sizes", "1"),
            *measured,
            *small,
            *few,
        ],
        "line": [
            *("landscape", str(pair.ft), str(pair.base), "--grid", "5"),
            *measured,
        ],
        "random": [
            *("landscape", str(pair.ft), "--grid", "3x3", "--normalize", "model"),
            *measured,
        ],
        "hessian": [
            *("landscape", str(pair.ft), "--plane", "hessian", "--grid", "3", "--limit", "2"),
            *("--data", str(rows)),
        ],
    }[kind]


def started(arguments: list[str], out: Path, jobs: int, threads: int = 2) -> subprocess.Popen[str]:
    """`deltalens ...` in a process of its own."""
    whole = [sys.executable, "-c", "from deltalens.cli.main import main; main()", *arguments]
    return subprocess.Popen(
        [*whole, "-q", "-o", str(out), "--jobs", str(jobs)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(arguments: list[str], out: Path, jobs: int, threads: int = 2) -> bytes:
    """The table of a study that ran to its end."""
    process = started(arguments, out, jobs, threads)
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said
    return table(out)


KINDS = ["drop", "layers", "line", "random", "hessian"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_jobs_give_the_table_of_one(wide: Pair, rows: Path, tmp_path: Path, kind: str) -> None:
    arguments = spec(kind, wide, rows)
    one = finished(arguments, tmp_path / "one", 1)
    assert finished(arguments, tmp_path / "two", 2) == one
    manifests = [json.loads((tmp_path / n / "study.json").read_text()) for n in ("one", "two")]
    assert manifests[0]["asked"] == manifests[1]["asked"]
    assert manifests[0]["facts"] == manifests[1]["facts"]


@pytest.mark.slow
def test_threads_do_decide_the_last_digits(wide: Pair, rows: Path, tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    arguments = spec("line", wide, rows)
    tables = [finished(arguments, tmp_path / str(n), 1, threads=n) for n in (1, 2)]
    assert tables[0] != tables[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[:3])
def test_interrupted_with_two_jobs_and_gone_on_with_one(
    wide: Pair, rows: Path, tmp_path: Path, kind: str
) -> None:
    arguments = spec(kind, wide, rows)
    out = tmp_path / "s"
    process = started(arguments, out, 2)
    while not (out / "cells.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    begun = len(journal(out))
    whole = finished(arguments, tmp_path / "whole", 1)
    assert 0 < begun < len(journal(tmp_path / "whole"))
    assert finished(arguments, out, 1) == whole


def test_models_that_do_not_fit_beside_each_other_are_refused(
    wide: Pair, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 130_000_000)
    for kind in ("drop", "layers", "random"):
        result = command(*spec(kind, wide, rows), "-o", tmp_path / kind, "--jobs", 9)
        assert result.exit_code == 2
        assert "too large for 9 models at once on cpu" in " ".join(result.stderr.split())
        assert "Use fewer " in " ".join(result.stderr.split())
        assert not (tmp_path / kind).exists()


def test_a_metric_that_cannot_travel_is_measured_in_one_process(wide: Pair, tmp_path: Path) -> None:
    processes = set()

    def metric(model: Any) -> float:
        processes.add(os.getpid())
        return 1.0

    record = drop_study(
        wide.ft, wide.base, tmp_path / "s", metric=metric, rates="0.5", jobs=2, fidelity=FEW
    )
    assert processes == {os.getpid()}
    assert any("measured in one process" in note for note in record.facts["notes"])


def test_models_in_memory_are_measured_in_one_process(tmp_path: Path) -> None:
    (origin,) = quadratics(1)
    record = deltalens.scan_landscape(
        origin, tmp_path / "s", plane="random", grid=3, metric=len_of, jobs=2
    )
    assert any("in this process's memory" in note for note in record.facts["notes"])


def len_of(model: Any) -> float:
    """A metric that any process finds."""
    return float(sum(p.numel() for p in model.parameters()))


CODE = """
from contextlib import contextmanager
from concurrent.futures import Future, ThreadPoolExecutor
import os, pathlib

class Threads:
    def __init__(self, worker, log):
        self.worker, self.log, self.pool = worker, log, ThreadPoolExecutor(1)

    def start(self, setting):
        with self.log.open("a") as stream:
            stream.write(f"{setting}\\n")
        return self.pool.submit(lambda: (self.worker.measure(setting, lambda *a: None), 0.5))

    def listen(self):
        pass

class Silent:
    stage = advance = staticmethod(lambda *given: None)

@contextmanager
def elsewhere(recipe, local, jobs, within):
    local.close()
    worker = recipe.prepare(Silent())
    pool = Threads(worker, pathlib.Path(os.environ["EXTRA_LOG"]))
    try:
        yield pool
    finally:
        pool.pool.shutdown()
        worker.close()
"""


def test_an_executor_of_an_installed_package_measures(
    wide: Pair, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {"elsewhere": "extra:elsewhere"}
    site = tmp_path / "site"
    install(site, monkeypatch, group="deltalens.executors", points=points, code=CODE)
    monkeypatch.setenv("EXTRA_LOG", str(tmp_path / "log"))
    arguments = spec("line", wide, rows)
    for name, more in (("here", []), ("there", ["--executor", "elsewhere"])):
        result = command(*arguments, "-q", "-o", tmp_path / name, *more)
        assert result.exit_code == 0, result.output
    assert table(tmp_path / "here") == table(tmp_path / "there")
    assert len((tmp_path / "log").read_text().splitlines()) == 7
    with pytest.raises(DeltaLensError, match=r"'slurm': choose from .*ray, processes, elsewhere"):
        deltalens.drop_study(wide.ft, wide.base, tmp_path / "s", executor="slurm")


def test_what_cannot_be_a_number_of_jobs_is_refused(wide: Pair, tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="jobs 0"):
        deltalens.drop_study(wide.ft, wide.base, tmp_path / "s", jobs=0)
