"""Ctrl-C, a polite kill and a closed terminal: a checkpoint, and the same command goes on."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltalens.io import stopping
from deltalens.training.run import TrainingWatch, train
from tests.training.test_train import spec

pytestmark = pytest.mark.resume

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", ALL)
def test_each_of_them_writes_a_checkpoint_first(
    base: Path, rows: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), number)
            if number != signal.SIGINT:
                # A terminal that closes says so twice; only Ctrl-C again means at once.
                os.kill(os.getpid(), number)

    out = tmp_path / "out"
    stopped = train(base, rows, out, spec(steps=3), watch=TrainingWatch(at=stop))
    assert not stopped.finished
    assert stopped.steps == 2
    assert (out / "checkpoints" / "checkpoint-2" / "deltalens-complete").exists()
    assert not (out / ".lock").exists()
    assert train(base, rows, out, spec(steps=3), resume=True).finished


def test_a_second_ctrl_c_stops_at_once(base: Path, rows: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(base, rows, tmp_path / "out", spec(steps=3), watch=TrainingWatch(at=stop))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_under_nohup_a_terminal_may_close(base: Path, rows: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def hang_up(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    try:
        done = train(base, rows, tmp_path / "out", spec(steps=2), watch=TrainingWatch(at=hang_up))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.finished


@pytest.mark.parametrize("number", ALL)
def test_handlers_come_back(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.getsignal(number)
    assert before is not signal.SIG_IGN
    with stopping.on_request(lambda number, frame: heard.append(number)):
        os.kill(os.getpid(), number)
    assert heard == [number]
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_the_terminal_of_a_training_closes(base: Path, rows: Path, tmp_path: Path) -> None:
    """With its progress bar, which cannot be drawn any more."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "deltalens.cli.main", "train", "sft", str(base)]
    command += ["--train-data", str(rows), "--steps", "20000", "--batch-size", "4", "-o", str(out)]
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TAKES_TERMINAL, *command],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    while process.poll() is None and not (out / "metrics.jsonl").exists():
        _drain(controller)
        time.sleep(0.05)
    assert process.poll() is None, _drain(controller)
    os.close(controller)
    assert process.wait(60) == 130
    assert list((out / "checkpoints").glob("checkpoint-*/deltalens-complete"))
    assert not (out / ".lock").exists()


TAKES_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
"""The new session's leader gets the terminal, so that it hears when that closes."""


def _drain(controller: int) -> bytes:
    try:
        return os.read(controller, 65536)
    except BlockingIOError:
        return b""
