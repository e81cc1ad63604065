"""What a training costs beside its steps: memory, and the search for what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["peak_mb", "reset_peak", "sparse_costs"]


def sparse_costs(
    facts: Mapping[str, Any], parameters: int, epoch_seconds: float, peak: float
) -> tuple[str, ...]:
    """Say what sparse tuning cost, as SPEFT's paper asks (arXiv 2412.13488, Section 4).

    Args:
        facts: of the training: `salience_seconds`, `index_bytes`, `trained`.
        parameters: of the model.
        epoch_seconds: how long an epoch takes at this training's pace; NaN if no step was taken.
        peak: of memory, in MB of 10^6 bytes; NaN if it is not known.

    Returns:
        Sentences; none of a training without salience.
    """
    if "salience_seconds" not in facts:
        return ()
    seconds, places = facts["salience_seconds"], facts["index_bytes"] / 1e6
    # A step of a frozen model is a forward pass and the gradients of activations, 4 operations a
    # parameter and token; an entry's product is 2.
    operations = facts["trained"] / (2 * parameters)
    return (
        f"salience: {seconds:.1f} s, {seconds / epoch_seconds:.2%} of an epoch at this pace",
        f"places of the entries: {places:.3g} MB, {places / peak:.2%} of peak memory",
        f"products of the entries: {operations:.2%} of a step's operations (estimated)",
    )


def reset_peak(device: torch.device) -> None:
    """Start to measure the peak of memory anew.

    Args:
        device: whose memory; of a CPU, that of this process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb(device: torch.device) -> float:
    """Read the peak of memory since `reset_peak`.

    Args:
        device: whose memory; of a CPU, that of this process.

    Returns:
        MB of 10^6 bytes; NaN if the operating system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return next(_status("VmHWM"), float("nan"))


def _status(name: str) -> Iterator[float]:
    """A memory figure of this process, in MB of 10^6 bytes; nothing if there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith(f"{name}:"):
            yield int(line.split()[1]) * 1024 / 1e6
