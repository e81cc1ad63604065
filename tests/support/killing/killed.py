"""Commands in processes that are killed, or asked to stop, at a chosen write or after a while.

They are forked from a process that has imported everything: a start takes milliseconds. What a
command writes is counted by Python's audit events, so that the same number is the same moment.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from tests.support.killing.forked import PRELOADED

_MORE = [
    "accelerate",
    "datasets",
    "numba.core.registry",
    "peft",
    "pyarrow.parquet",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "transformers.models.auto.modeling_auto",
    "deltalens.figures.gradient_run",
    "deltalens.figures.gmt_tab3",
    "deltalens.figures.landscape",
    "deltalens.figures.mft_tab5",
    "deltalens.numerics.selection.loops",
    "deltalens.numerics.compiled_masks",
    "deltalens.studies.efficiency",
    "deltalens.studies.landscape.scan",
    "deltalens.studies.layer_drop",
    "deltalens.studies.mft_sweeps",
    "deltalens.reports.trainings",
    "deltalens.training.run",
    "tests.support.killing.killed",
]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Moment:
    """When a process gets which signal."""

    number: int
    """The signal."""
    write: int | None = None
    """Right before this write, the first is 1."""
    seconds: float = 0.0
    """Else so long after the command began."""

    def __str__(self) -> str:
        at = f"write {self.write}" if self.write is not None else f"{self.seconds:.2f} s"
        return f"{signal.Signals(self.number).name} at {at}"


@dataclass(frozen=True)
class Ended:
    """How a process came to its end."""

    code: int
    """Negative: the signal that ended it."""
    said: str
    """On stderr."""
    writes: list[tuple[str, str]]
    """Each write, by kind and path below the place of work; none of a process that was killed."""
    seconds: float
    """That the command took."""


@functools.cache
def _context() -> ForkServerContext:
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([*PRELOADED, *_MORE])
    return made


def run(arguments: list[str], work: Path, log: Path, moment: Moment | None = None) -> Ended:
    """Run `deltalens ...` until its end.

    Args:
        arguments: of the command.
        work: the folder in which its writes are counted.
        log: a new folder, for what is said and written.
        moment: when it is killed.
    """
    log.mkdir(parents=True)
    process = _context().Process(target=_run, args=(arguments, str(work), str(log), moment))
    process.start()
    process.join()
    assert process.exitcode is not None
    end = log / "end"
    writes, seconds = json.loads(end.read_text()) if end.exists() else ([], 0.0)
    return Ended(process.exitcode, (log / "said").read_text(errors="replace"), writes, seconds)


def _run(arguments: list[str], work: str, log: str, moment: Moment | None) -> None:
    import torch

    from deltalens.cli.main import app

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(f"{log}/said", os.O_WRONLY | os.O_CREAT), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    writes: list[tuple[str, str]] = []
    _watch(work, writes, moment)
    if moment is not None and moment.write is None:
        threading.Thread(target=_later, args=(moment,), daemon=True).start()
    begun = time.monotonic()
    try:
        app(arguments)
    finally:
        Path(log, "end").write_text(json.dumps((writes, time.monotonic() - begun)))


def _later(moment: Moment) -> None:
    time.sleep(moment.seconds)
    os.kill(os.getpid(), moment.number)


def _watch(work: str, writes: list[tuple[str, str]], moment: Moment | None) -> None:
    prefix = f"{work}/"

    def wrote(kind: str, path: Any, folder: Any = -1) -> None:
        name = _absolute(path, folder)
        if not name.startswith(prefix):
            return
        writes.append((kind, name[len(prefix) :]))
        if moment is not None and len(writes) == moment.write:
            os.kill(os.getpid(), moment.number)

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            if isinstance(path, str | bytes | os.PathLike) and flags & _WRITING:
                wrote("open", path)
        elif event == "os.rename":
            wrote("rename", given[0], given[2])
        elif event in ("os.remove", "os.rmdir"):
            wrote(event, given[0], given[1])
        elif event in ("os.mkdir", "os.truncate"):
            wrote(event, given[0])

    os.fsync = _telling(os.fsync, wrote)
    sys.addaudithook(heard)


def _absolute(path: Any, folder: Any) -> str:
    if isinstance(path, int):
        return _named(path)
    name = os.fsdecode(path)
    if folder not in (-1, None) and not name.startswith("/"):
        return f"{_named(folder)}/{name}"
    return os.path.abspath(name)


def _named(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def _telling(sync: Callable[[Any], None], wrote: Callable[[str, Any], None]) -> Callable[..., None]:
    def telling(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        wrote("fsync", number)
        sync(descriptor)

    return telling
