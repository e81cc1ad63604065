"""The worker of a Ray cluster: what runs in the process of an actor."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from deltalens.errors import DeltaLensError, describe_error, fault_list, is_library_error
from deltalens.io.records import Setting
from deltalens.studies.executors.protocol import NotPrepared
from deltalens.studies.executors.remote import RemoteWorker
from deltalens.studies.executors.visible import unseen

__all__ = ["RayWorker"]


class RayWorker:
    """An actor that measures cells.

    Args:
        pickled: the recipe.
        threads: of torch.
        quiet: keep the notices of transformers out of the logs.
        inbox: queue for reports of progress: (number of the cell, completed fraction).
    """

    def __init__(self, pickled: bytes, threads: int, quiet: bool, inbox: Any) -> None:
        self._pickled, self._threads, self._quiet, self._inbox = pickled, threads, quiet, inbox
        self._worker: RemoteWorker | None = None

    def prepare(self, expected: Mapping[str, str], folder: str) -> BaseException | None:
        """Check that the study's files can be seen here, and load the model.

        Args:
            expected: what `unseen` takes.
            folder: in which the study was started: relative paths begin there.

        Returns:
            Why cells cannot be measured here; None: they can.
        """
        from ray import cloudpickle

        where = f"Ray's worker on {socket.gethostname()}"
        if faults := unseen(expected):
            title = (
                f"{where} does not see the study's files; put them on a file system that all nodes "
                "share, under the same path:"
            )
            return DeltaLensError(fault_list(title, faults))
        with suppress(OSError):  # Without it there are no relative paths: see above.
            os.chdir(folder)
        try:
            recipe = cloudpickle.loads(self._pickled)
        except Exception as error:  # A module of the caller's that is not there, or anything else.
            return DeltaLensError(
                f"{where} cannot import what is measured: {describe_error(error)}"
            )
        self._worker = RemoteWorker(recipe, self._threads, self._quiet)
        try:
            self._worker.prepare()
        except NotPrepared as refused:
            return _portable(refused.error)
        return None

    def measure(self, number: int, setting: Setting) -> tuple[Any, float] | BaseException:
        """Measure one point.

        Args:
            number: of the cell, in reports of progress.
            setting: the point.

        Returns:
            What was measured, and the seconds it took; or the error that the cell failed with.
        """
        assert self._worker is not None

        def tell(fraction: float) -> None:
            with suppress(Exception):  # Without progress, a cell is still a cell.
                self._inbox.put_nowait((number, fraction))

        try:
            return self._worker.measure(setting, tell)
        except BaseException as error:
            if not is_library_error(error):
                raise
            return _portable(error)


def _portable(error: BaseException) -> BaseException:
    """An error that can be sent to the study's process; one that cannot is described."""
    from ray import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(error)  # type: ignore[no-untyped-call]
        cloudpickle.loads(pickled)
    except Exception:  # A class of the caller's or of a library can raise anything.
        return DeltaLensError(describe_error(error))
    return error
