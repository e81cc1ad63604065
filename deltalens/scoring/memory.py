"""Whether models fit into the memory of a device."""

from __future__ import annotations

import math
from math import prod
from pathlib import Path
from typing import Any

import torch

from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint
from deltalens.scoring.file_scoring import batch_positions

__all__ = ["CGROUPS", "check_fits", "free_memory", "models_per_device", "too_many_jobs"]

CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""A container's control group: its folder, the files with its limit and usage, and the name of the
part of the usage that is cache, which the kernel frees on demand."""


def check_fits(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    batch_tokens: int,
    jobs: int = 1,
) -> None:
    """Refuse a model that does not fit into the device's memory, before it is loaded.

    A model needs its parameters in the chosen dtype, its largest tensor in fp32, and the logits of
    one batch in fp32. `free_memory` says how much there is.

    Args:
        checkpoint: the model's checkpoint.
        dtype: dtype in which it will be loaded.
        device: where it will be loaded.
        batch_tokens: tokens per batch.
        jobs: number of models that are loaded in parallel.

    Raises:
        DeltaLensError: states how much memory is needed and free, and says what to do.
    """
    sizes = [prod(entry.shape) for entry in checkpoint.tensors.values()]
    vocabulary = _vocabulary(checkpoint.config)
    positions = batch_positions(batch_tokens, vocabulary)
    needed = sum(sizes) * dtype.itemsize + max(sizes) * 4 + positions * vocabulary * 4
    free, models = free_memory(device), models_per_device(device, jobs)
    if free is not None and needed <= free < models * needed:
        raise DeltaLensError(too_many_jobs(checkpoint, device, models, needed, free))
    if free is not None and needed > free:
        raise DeltaLensError(
            f"{checkpoint.path}: too large for {device}: it needs {needed / 1e9:.2f} GB "
            f"({sum(sizes) / 1e6:,.0f} M parameters in {str(dtype).removeprefix('torch.')}, the "
            f"largest tensor in fp32, logits of {positions:,} tokens), and {free / 1e9:.2f} GB are "
            "free. Use a larger `device`, a smaller `dtype` (bfloat16) or a smaller "
            "`batch_tokens`; `inspect` and `drop` do not load the model."
        )


def _vocabulary(config: dict[str, Any]) -> int:
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    size = text.get("vocab_size")
    return size if isinstance(size, int) and 0 <= size < 1 << 40 else 0


def models_per_device(device: torch.device, jobs: int) -> int:
    """Count the models on one device. They are spread over all CUDA devices, unless `device` has an
    index.

    Args:
        device: the device requested.
        jobs: number of models that are loaded in parallel.

    Returns:
        The largest number of models on any one device.
    """
    spread = device.type == "cuda" and device.index is None
    return math.ceil(jobs / max(1, torch.cuda.device_count())) if spread else jobs


def too_many_jobs(
    checkpoint: Checkpoint, device: torch.device, models: int, needed: int, free: int
) -> str:
    """Word the error for a model that fits, but not as often as `jobs` requires.

    Args:
        checkpoint: the model's checkpoint.
        device: where it would be loaded.
        models: how many times it would be there in parallel.
        needed: bytes that each needs.
        free: bytes that are free.

    Returns:
        The message.
    """
    return (
        f"{checkpoint.path}: too large for {models} models at once on {device}: each needs "
        f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free. Use fewer `jobs` "
        f"({free // needed} fit), or a smaller `dtype` (bfloat16)"
    )


def free_memory(device: torch.device) -> int | None:
    """Get the free memory of a device.

    Args:
        device: the device.

    Returns:
        A number of bytes; for a CPU, the smaller of the available memory and what the container's
        limit leaves. None if it is unknown.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free: list[int] = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except OSError:
        pass
    for folder, limit, usage, cache in CGROUPS:
        try:
            whole, used = (int(Path(folder, name).read_text()) for name in (limit, usage))
            lines = Path(folder, "memory.stat").read_text().splitlines()
            used -= sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
        except (OSError, ValueError, IndexError):
            continue
        free.append(whole - used)
    return min(free, default=None)
