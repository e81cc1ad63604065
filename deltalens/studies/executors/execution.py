"""Which executor measures the cells of a study, and with how much of the hardware."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from deltalens.catalog.plugins import find, plugins
from deltalens.errors import DeltaLensError, describe_error
from deltalens.studies.executors.local import sequential
from deltalens.studies.executors.processes import processes
from deltalens.studies.executors.protocol import Executor, Recipe
from deltalens.studies.executors.ray_cluster import RayExecutor

__all__ = ["Execution"]

_RAY = "ray"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """By what the cells of a study are measured. No number depends on it, and it is no part of a
    study's identity.

    Raises:
        DeltaLensError: the options do not go together.
    """

    jobs: int = 1
    """Cells that are measured at the same time, each by a worker with its own model."""
    executor: str | None = None
    """`sequential`, `processes`, `ray`, or the name of an installed package's executor. None:
    `processes` if there are several jobs, else `sequential`."""
    devices: tuple[str, ...] = ()
    """With `processes`: the device of each of them, `cuda:0` and so on. (): all in turn."""
    address: str | None = None
    """With `ray`: the cluster, as `host:port` or `auto`. None: the one that `RAY_ADDRESS` names, or
    else one that is started on this machine for the study."""
    gpus_per_worker: float | None = None
    """With `ray`: GPUs that are reserved for each worker. None: 1 if models are loaded on GPUs."""
    cpus_per_worker: int | None = None
    """With `ray`: CPU cores that are reserved for each worker. None: 1 beside a GPU, else as many
    as torch has threads."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise DeltaLensError(f"jobs {self.jobs}: must be at least 1")
        if self.executor != _RAY:
            for name in ("address", "gpus_per_worker", "cpus_per_worker"):
                if getattr(self, name) is not None:
                    raise DeltaLensError(
                        f"{name} {getattr(self, name)}: only executor {_RAY!r} takes it"
                    )
        if not self.devices:
            return
        named = ",".join(self.devices)
        if self.executor not in (None, "processes"):
            raise DeltaLensError(
                f"devices {named}: they are those of the executor 'processes', not of "
                f"{self.executor!r}"
            )
        if self.jobs != len(self.devices):
            raise DeltaLensError(f"devices {named}: one for each of the {self.jobs} jobs")

    def device(self, given: str = "auto") -> str:
        """The device on which each worker loads its models.

        Args:
            given: the study's device, as the caller gave it.

        Returns:
            The device; without an index if each process has its own.

        Raises:
            DeltaLensError: `devices` cannot be used, or contradict `given`.
        """
        if not self.devices:
            return given
        named, available = ",".join(self.devices), torch.cuda.device_count()
        kinds = {name.partition(":")[0] for name in self.devices}
        if len(kinds) > 1 or given not in ("auto", *kinds):
            raise DeltaLensError(
                f"devices {named}: all of one kind, which is the study's `device` ({given})"
            )
        allowed = {"cpu", *(f"cuda:{number}" for number in range(available))}
        if unknown := [name for name in self.devices if name not in allowed]:
            raise DeltaLensError(
                f"devices {named}: there is no {', '.join(unknown)}; choose from "
                f"{', '.join(sorted(allowed))}"
            )
        return kinds.pop()

    @contextmanager
    def on_first_device(self) -> Iterator[None]:
        """Let "cuda" be the first of `devices` in this process, where the first worker is prepared.

        Yields:
            For the duration of the study.
        """
        first = torch.device(self.devices[0]) if self.devices else None
        with torch.cuda.device(first if first is not None and first.type == "cuda" else -1):
            yield

    @property
    def models_here(self) -> int:
        """How many models are loaded on this machine at the same time."""
        elsewhere = self.executor == _RAY and (self.address or os.environ.get("RAY_ADDRESS"))
        return 1 if elsewhere else self.jobs

    def check(self, device: torch.device) -> None:
        """Check that the executor can be used.

        Args:
            device: where models are loaded.

        Raises:
            DeltaLensError: see `find`; or Ray cannot give this device to its workers.
        """
        executor = self.find()
        if isinstance(executor, RayExecutor):
            executor.check(device)

    def find(self) -> Executor:
        """Find the executor.

        Returns:
            The executor.

        Raises:
            DeltaLensError: there is no executor of this name, or it cannot be loaded.
        """
        made: dict[str, Callable[[], Executor]] = {
            "sequential": lambda: sequential,
            _RAY: lambda: RayExecutor(self.address, self.gpus_per_worker, self.cpus_per_worker),
            "processes": lambda: functools.partial(processes, devices=self.devices),
        }
        name = self.executor or ("processes" if self.jobs > 1 or self.devices else "sequential")
        if name in made:
            return made[name]()
        plugin = find("executor", name, made)
        if plugin is None:
            available = ", ".join([*made, *sorted(plugins("executor", made))])
            raise DeltaLensError(f"executor {name!r}: choose from {available}")
        executor: Executor = plugin.load()
        return executor

    def local_reason(self, recipe: Recipe[Any]) -> str | None:
        """Explain why only this process can prepare workers, if that is so.

        Args:
            recipe: of the workers.

        Returns:
            The reason; None: any process can.

        Raises:
            DeltaLensError: it is so, but the executor is Ray's: who asks for a cluster is told.
        """
        reason = recipe.local_reason
        if self.executor == _RAY:
            if reason is not None:
                raise DeltaLensError(f"executor {_RAY!r}: {reason}; use executor 'sequential'")
            return None  # Its own pickler takes what is defined in a script or at a prompt.
        return reason or _not_picklable(recipe)


def _not_picklable(recipe: Recipe[Any]) -> str | None:
    try:
        pickled = bytes(ForkingPickler.dumps(recipe))
    except Exception as error:  # The caller's objects can raise anything.
        return f"what is measured cannot be sent to another process ({describe_error(error)})"
    if b"__main__" in pickled and not hasattr(sys.modules["__main__"], "__file__"):
        return "what is measured is defined at a prompt, where no other process can import it"
    return None
