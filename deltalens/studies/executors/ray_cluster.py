"""Measuring on a Ray cluster, or on one that is started on this machine for the study.

Each worker is an actor, in a place that is reserved for it: a bundle of a placement group. An actor
that is lost is replaced in its place, and its cell is measured again.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from deltalens.errors import DeltaLensError, describe_error
from deltalens.studies.executors.protocol import Recipe, Within, Worker, WorkerPool
from deltalens.studies.executors.ray_pool import RayPool
from deltalens.studies.executors.visible import glances

__all__ = ["RayExecutor"]

_PATIENCE = 60.0
"""Seconds to wait for free resources."""
_REACHABLE_SECONDS = 5.0
_STORE_BYTES = 1 << 27
"""Least size of the object store of a cluster that we start; it holds the recipe."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else the death of a worker is announced on standard output, amid the JSON of a command.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
"""Read when Ray is imported."""

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class RayExecutor:
    """Workers on a Ray cluster (see `Executor`)."""

    address: str | None = None
    """`host:port` or `auto`; None: `RAY_ADDRESS`, else a cluster on this machine is started, and
    ended afterwards."""
    gpus: float | None = None
    """GPUs that are reserved for each worker; None: 1 if models are loaded on GPUs."""
    cpus: int | None = None
    """CPU cores that are reserved for each worker; None: 1 beside a GPU, else torch's threads."""
    patience: float = _PATIENCE
    """Seconds to wait for free resources."""

    def check(self, device: torch.device) -> None:
        """Check what can be checked before any work.

        Args:
            device: where models are loaded.

        Raises:
            DeltaLensError: Ray is not installed, or nobody listens at the address; or the device
                has an index, or is not what is reserved.
        """
        if importlib.util.find_spec("ray") is None:
            raise DeltaLensError(
                "executor 'ray': Ray is not installed: pip install 'deltalens[ray]'"
            )
        if device.index is not None:
            raise DeltaLensError(
                f"device {device} with executor 'ray': Ray chooses the GPU of each worker; give "
                f"{device.type!r}"
            )
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus % 1)):
            raise DeltaLensError(
                f"gpus_per_worker {self.gpus:g}: a whole number, or a part of one GPU"
            )
        if self.gpus is not None and (self.gpus > 0) != (device.type == "cuda"):
            raise DeltaLensError(
                f"gpus_per_worker {self.gpus:g}: models are loaded on {device.type!r}; choose the "
                "`device`"
            )
        if self.cpus is not None and self.cpus < 1:
            raise DeltaLensError(f"cpus_per_worker {self.cpus}: must be at least 1")
        _check_reachable(self._address)

    @property
    def _address(self) -> str:
        return self.address or os.environ.get("RAY_ADDRESS") or "local"

    @contextmanager
    def __call__(
        self, recipe: Recipe[Measured], local: Worker[Measured], jobs: int, within: Within
    ) -> Iterator[WorkerPool[Measured]]:
        """See `Executor`.

        Raises:
            DeltaLensError: the cluster cannot be reached, has not enough free resources, or its
                workers do not see the study's files; or the recipe cannot be pickled.
        """
        self.check(recipe.device)
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from ray import cloudpickle

        try:
            pickled = cloudpickle.dumps(recipe)  # type: ignore[no-untyped-call]
        except Exception as error:  # The caller's objects can raise anything.
            raise DeltaLensError(
                "executor 'ray': what is measured cannot be sent to another process "
                f"({describe_error(error)})"
            ) from error
        expected = glances(recipe.paths)
        local.close()
        needs = self._needs(recipe.device)
        with self._session(needs, jobs, len(pickled)), self._places(needs, jobs) as group:
            pool = RayPool(pickled, expected, group, needs, within, self.patience)
            try:
                pool.open(jobs)
                yield pool
            finally:
                pool.close()

    def _needs(self, device: torch.device) -> dict[str, float]:
        """The resources of each worker."""
        on_gpu = device.type == "cuda"
        gpus = (1.0 if on_gpu else 0.0) if self.gpus is None else self.gpus
        cpus = (1 if on_gpu else torch.get_num_threads()) if self.cpus is None else self.cpus
        return {"CPU": float(cpus), **({"GPU": gpus} if gpus else {})}

    @contextmanager
    def _session(self, needs: Mapping[str, float], jobs: int, sent: int) -> Iterator[None]:
        """Connect to the cluster, or start one; undone at the end, unless the caller had already
        done so.

        Raises:
            DeltaLensError: the cluster cannot be used, or the caller is connected to another.
        """
        import ray

        if ray.is_initialized():
            _check_same(self.address)
            yield
            return
        address = self._address
        options: dict[str, Any] = {}
        if address == "local":
            options = {
                "num_cpus": max(os.cpu_count() or 1, int(needs["CPU"]) * jobs),
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES + 2 * sent,
            }
        try:
            with _same_signals():
                ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except Exception as error:  # Ray raises what it pleases.
            raise DeltaLensError(
                f"Ray at {address!r} cannot be used: {describe_error(error)}; run the study on a "
                "node of the cluster, where `ray status` works"
            ) from error
        try:
            yield
        finally:
            with _same_signals():
                ray.shutdown()

    @contextmanager
    def _places(self, needs: Mapping[str, float], jobs: int) -> Iterator[Any]:
        """Reserve the workers' resources, spread over the nodes."""
        import ray
        from ray.util import placement_group, remove_placement_group

        group = placement_group([dict(needs)] * jobs, strategy="SPREAD")
        try:
            if not group.wait(self.patience):
                free = ray.available_resources()  # type: ignore[no-untyped-call]
                each = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
                left = " and ".join(f"{free.get(name, 0):g} {name}" for name in needs)
                raise DeltaLensError(
                    f"Ray has no room for {jobs} workers with {each} each: {left} in all are free "
                    f"after {self.patience:g} s; use fewer `jobs`, or change `cpus_per_worker` or "
                    "`gpus_per_worker`"
                )
            yield group
        finally:
            with suppress(Exception):
                remove_placement_group(group)


def _check_same(address: str | None) -> None:
    """Check that the cluster to which this program is connected is the one that the caller named.

    Raises:
        DeltaLensError: it is another.
    """
    import ray

    connected = ray.get_runtime_context().gcs_address
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    its_host, _, its_port = connected.rpartition(":")
    loopback = host in ("localhost", "127.0.0.1")
    if port != its_port or not (loopback or socket.gethostbyname(host) == its_host):
        raise DeltaLensError(
            f"address {address}: this program is connected to the Ray cluster at {connected} "
            "already; leave the address out to use that, or call ray.shutdown() first"
        )


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes.

    Raises:
        DeltaLensError: nobody listens there.
    """
    host, colon, port = address.rpartition(":")
    if address in ("local", "auto"):
        return
    if not colon or not port.isdecimal() or "/" in host:
        raise DeltaLensError(f"address {address!r}: host:port of a Ray cluster, or auto")
    try:
        socket.create_connection((host, int(port)), _REACHABLE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise DeltaLensError(
            f"address {address}: no Ray cluster can be reached there ({error}); start one with "
            "`ray start`, which says its address"
        ) from error


@contextmanager
def _same_signals() -> Iterator[None]:
    """Ray installs a handler of its own for polite kills; keep the caller's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
