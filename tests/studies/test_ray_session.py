"""Reaching a Ray cluster, and the one that deltalens starts and ends itself."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.studies.executors import Execution
from deltalens.studies.executors.visible import glances, unseen
from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.runs import journal, table


@pytest.fixture(scope="module")
def pair(pair_of: PairOf) -> Pair:
    return pair_of(family="llama")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DeltaLensError, match=r"pip install 'deltalens\[ray\]'"):
        Execution(executor="ray").check(torch.device("cpu"))


def test_a_device_with_an_index_is_left_to_ray() -> None:
    with pytest.raises(DeltaLensError, match=r"Ray chooses the GPU of each worker; give 'cuda'"):
        Execution(executor="ray").check(torch.device("cuda:1"))


def test_a_cluster_that_cannot_be_reached_is_an_error_at_once(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Nobody listens there.
        for address, message in (
            (f"127.0.0.1:{taken.getsockname()[1]}", "no Ray cluster can be reached there"),
            ("ray://somewhere:10001", "host:port of a Ray cluster, or auto"),
        ):
            with pytest.raises(DeltaLensError, match=message):
                deltalens.drop_study(
                    *(pair.ft, pair.base, tmp_path / "s"),
                    executor="ray",
                    address=address,
                    rates="0.5",
                    seeds=1,
                    fidelity_tokens=4,
                )
            assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_ctrl_c_ends_the_cluster_and_leaves_a_study_that_goes_on(
    pair: Pair, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    arguments = ["drop-study", str(pair.ft), str(pair.base), "--fidelity-tokens", "32", "-q"]
    on_ray = ["--executor", "ray", "--jobs", "2", "--cpus-per-worker", "1"]
    program = [sys.executable, "-c", "from deltalens.cli.main import main; main()", *arguments]
    options = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp"}
    out = tmp_path / "s"
    process = subprocess.Popen(
        [*program, "-o", str(out), *on_ray], env=options, stderr=subprocess.PIPE, text=True
    )
    while not (out / "cells.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    cluster = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 130, said
    assert "finished cells are kept" in said
    assert "Traceback" not in said
    assert cluster
    assert gone(cluster)
    begun = len(journal(out))
    for folder in (out, tmp_path / "whole"):
        subprocess.run([*program, "-o", str(folder)], env=options, check=True)
    assert 0 < begun < len(journal(out))
    assert table(out) == table(tmp_path / "whole")


def descendants(process: int) -> list[int]:
    """All processes that a process has started, directly or not."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [each for child in map(int, children) for each in (child, *descendants(child))]


def gone(processes: list[int], seconds: float = 20.0) -> bool:
    """Whether they have all ended, given some time."""
    for _ in range(int(seconds / 0.1)):
        if not any(Path(f"/proc/{number}").exists() for number in processes):
            return True
        time.sleep(0.1)
    return False


def test_the_same_shard_of_another_training_is_another_file(tmp_path: Path) -> None:
    """Same size, same header: the weights differ."""
    shard = tmp_path / "model.safetensors"
    weights = torch.zeros(1 << 20)
    save_file({"w": weights}, shard)
    expected = glances([shard])
    assert unseen(expected) == []
    weights[1 << 19 :] += 1  # The first ones can be frozen.
    save_file({"w": weights}, shard)
    assert unseen(expected) == [f"{shard}: is another file there"]
