"""Commands in processes of their own that can be killed, forked from one that has imported all."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch",
    "pandas",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "deltalens.cli.main",
    "deltalens.figures.gmt_fig3",
    "deltalens.studies.drop_run",
    "deltalens.studies.drop_study",
    "deltalens.reports.drop",
    "tests.support.killing.forked",
]


@functools.cache
def context() -> ForkServerContext:
    """Processes that begin with torch, transformers and deltalens imported."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made


def start(arguments: list[str], computed: Path, said: Path | None = None) -> BaseProcess:
    """Run `deltalens ...`; each cell that is computed adds a line to the file `computed`, and what
    is printed on stderr goes into the file `said`."""
    process = context().Process(target=_run, args=(arguments, str(computed), str(said or "")))
    process.start()
    return process


def finish(arguments: list[str], computed: Path) -> float:
    """Run `deltalens ...` to its end, which has to be a good one; the seconds it took."""
    begun = time.monotonic()
    process = start(arguments, computed)
    process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode}"
    return time.monotonic() - begun


def _run(arguments: list[str], computed: str, said: str) -> None:
    import torch

    from deltalens.cli.main import app
    from deltalens.studies.drop_run import DropWorker

    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if said:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    # Tests that run in the background have been told to ignore Ctrl-C, and hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    DropWorker.edit = _counted(DropWorker.edit, computed)  # type: ignore[method-assign]
    app(arguments)


def _counted(edit: Callable[..., None], computed: str) -> Callable[..., None]:
    def counting(self: Any, setting: Any) -> None:
        edit(self, setting)
        with open(computed, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(setting) + "\n")

    return counting


__all__ = ["finish", "start"]
