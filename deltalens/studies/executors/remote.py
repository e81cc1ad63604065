"""A worker in a process of its own, as all executors with several processes have them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from deltalens.errors import is_library_error
from deltalens.io.escaping import plain_lines
from deltalens.io.records import Setting
from deltalens.studies.executors.protocol import NotPrepared, Recipe, Worker

__all__ = ["RemoteWorker"]

_REPORT_SECONDS = 0.5
"""At least this long between two reports."""


class RemoteWorker:
    """Measures cells for another process.

    Args:
        recipe: prepares the worker.
        threads: of torch, in this process from now on.
        quiet: keep the notices of transformers off the terminal.
    """

    def __init__(self, recipe: Recipe[Any], threads: int, quiet: bool) -> None:
        self._recipe = recipe
        self._worker: Worker[Any] | None = None
        torch.set_num_threads(threads)
        warnings.formatwarning = _one_line
        if quiet:
            from transformers.utils import logging

            logging.set_verbosity_error()
            logging.disable_progress_bar()

    def prepare(self) -> Worker[Any]:
        """Prepare the worker, unless it is ready.

        Returns:
            The worker.

        Raises:
            NotPrepared: it cannot be prepared.
        """
        if self._worker is None:
            try:
                self._worker = self._recipe.prepare(_Silent())
            except BaseException as error:
                if not is_library_error(error):
                    raise
                raise NotPrepared(error) from error
        return self._worker

    def measure(self, setting: Setting, tell: Callable[[float], None]) -> tuple[Any, float]:
        """Measure one point.

        Args:
            setting: the point.
            tell: called with the completed fraction, about twice a second.

        Returns:
            What was measured, and the seconds it took.

        Raises:
            NotPrepared: the worker cannot be prepared.
        """
        worker = self.prepare()
        begun = reported = time.perf_counter()

        def report(done: int, total: int) -> None:
            nonlocal reported
            now = time.perf_counter()
            if now - reported >= _REPORT_SECONDS:
                reported = now
                tell(done / max(1, total))

        return worker.measure(setting, report), time.perf_counter() - begun


class _Silent:
    """A `Progress` that reports to nobody."""

    def stage(self, name: str, total: int | None) -> None:
        """See `Progress`."""

    def advance(self, steps: int) -> None:
        """See `Progress`."""


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """Format a warning as the commands do."""
    return f"{category.__name__}: {plain_lines(message)}\n"
