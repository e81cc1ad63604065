"""Loading a model from a local checkpoint folder, after checking that it fits."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltalens.errors import CheckpointError, DeltaLensError, describe_error, is_library_error
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.config import check_config, check_made
from deltalens.io.header import FLOATS
from deltalens.io.platform import quiet_panics
from deltalens.io.pretrained import class_of, own_code, read_model, read_tokenizer
from deltalens.io.tying import skeleton
from deltalens.scoring.file_scoring import batch_positions

__all__ = [
    "LoadedModel",
    "Loading",
    "beside_each_other",
    "check_fits",
    "free_memory",
    "load_model",
    "pick_device",
    "pick_dtype",
    "too_many_jobs",
]

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
_CGROUP = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""A container's folder, limit and usage, and the part of it that is cache and goes on demand."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, with its tokenizer if the folder has one."""

    model: nn.Module
    tokenizer: Any | None
    device: torch.device
    fresh: tuple[str, ...]
    """Parameters that the checkpoint lacks and transformers initialized at random."""
    again: Callable[[], LoadedModel] | None = None
    """Loads another one, as this one was."""


@dataclass(frozen=True)
class Loading:
    """How the models of a study are loaded."""

    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool | None = None

    @property
    def one_device(self) -> bool:
        """An accelerator was named, of several that there may be."""
        return self.device.index is not None

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """See `load_model`."""
        return load_model(checkpoint, self.dtype, self.device, self.trust_remote_code)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        DeltaLensError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        why = textwrap.shorten(str(error).split(". ")[0], 120, placeholder=" ...")
        raise DeltaLensError(
            f"device {name!r} cannot be used: {why}; take auto, cpu or cuda"
        ) from error
    return device


def pick_dtype(name: str, checkpoint: Checkpoint) -> torch.dtype:
    """`auto` is the dtype that most of the checkpoint's entries have.

    Raises:
        DeltaLensError: no such dtype.
    """
    if name in _DTYPES:
        return _DTYPES[name]
    if name != "auto":
        raise DeltaLensError(f"dtype {name!r}: choose auto or one of {', '.join(_DTYPES)}")
    sizes = dict.fromkeys(FLOATS, 0)
    for entry in checkpoint.tensors.values():
        if entry.dtype in sizes:
            sizes[entry.dtype] += entry.numel
    most = max(sizes, key=lambda dtype: sizes[dtype])
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    return _DTYPES[names[most]]


def check_fits(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    batch_tokens: int,
    jobs: int = 1,
) -> None:
    """Refuse a model that the device cannot hold, before it is loaded.

    Needed: the parameters at the chosen dtype, the largest tensor in fp32, one batch's logits in
    fp32; and all of it so many times as there are models on one device. There is: see
    `free_memory`.

    Raises:
        DeltaLensError: with both figures and what to do.
    """
    sizes = [prod(entry.shape) for entry in checkpoint.tensors.values()]
    vocabulary = _vocabulary(checkpoint.config)
    positions = batch_positions(batch_tokens, vocabulary)
    needed = sum(sizes) * dtype.itemsize + max(sizes) * 4 + positions * vocabulary * 4
    there, beside = free_memory(device), beside_each_other(device, jobs)
    if there is not None and needed <= there < beside * needed:
        raise DeltaLensError(too_many_jobs(checkpoint, device, beside, needed, there))
    if there is not None and needed > there:
        raise DeltaLensError(
            f"{checkpoint.path}: too large for {device}: it needs {needed / 1e9:.2f} GB "
            f"({sum(sizes) / 1e6:,.0f} M parameters in {str(dtype).removeprefix('torch.')}, the "
            f"largest tensor in fp32, logits of {positions:,} tokens) and there is "
            f"{there / 1e9:.2f} GB. Take a larger device (--device), a smaller dtype (--dtype "
            "bfloat16) or smaller batches (--batch-tokens); `inspect` and `drop` need no model."
        )


def _vocabulary(config: dict[str, Any]) -> int:
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    size = text.get("vocab_size")
    return size if isinstance(size, int) and 0 <= size < 1 << 40 else 0


def beside_each_other(device: torch.device, jobs: int) -> int:
    """How many of so many models are on one device at once: they spread over all that there are,
    unless one is named."""
    spread = device.type == "cuda" and device.index is None
    return math.ceil(jobs / max(1, torch.cuda.device_count())) if spread else jobs


def too_many_jobs(
    checkpoint: Checkpoint, device: torch.device, beside: int, needed: int, there: int
) -> str:
    """The message for models that fit alone and not beside each other.

    Args:
        checkpoint: whose model is loaded.
        device: where.
        beside: how many are there at once.
        needed: bytes, each.
        there: bytes that are free.
    """
    return (
        f"{checkpoint.path}: too large for {beside} models at once on {device}: each needs "
        f"{needed / 1e9:.2f} GB and there is {there / 1e9:.2f} GB. Take fewer --jobs "
        f"({there // needed} fit), or a smaller dtype (--dtype bfloat16)"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has left: of a CPU the smaller of available memory and what the
    container's limit leaves; None where nobody knows."""
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
    for folder, limit, usage, cache in _CGROUP:
        try:
            whole, used = (int(Path(folder, name).read_text()) for name in (limit, usage))
            lines = Path(folder, "memory.stat").read_text().splitlines()
            used -= sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
        except (OSError, ValueError, IndexError):
            continue
        free.append(whole - used)
    return min(free, default=None)


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool | None = None,
) -> LoadedModel:
    """Load with the class that the configuration names, from local files only.

    Args:
        checkpoint: a folder.
        dtype: of the parameters.
        device: where they are to be.
        trust_remote_code: run code that the checkpoint brings. None: whoever asks has no such
            option.

    Raises:
        DeltaLensError: no configuration, one of a far larger model than the checkpoint has, a
            class that transformers does not know (custom code is run only when asked), or
            transformers cannot load it (its reason is given).
    """
    if not checkpoint.path.is_dir() or not checkpoint.config:
        raise DeltaLensError(
            f"{checkpoint.path}: a study needs a folder with a config.json, to load the model; "
            "`inspect` and `drop` do not"
        )
    check_config(checkpoint)
    loader = _loader(checkpoint, trust_remote_code)
    made = skeleton(checkpoint.config)
    if made is not None:
        check_made(checkpoint, made)
    try:
        with quiet_panics():
            model, info = read_model(checkpoint.path, loader, dtype=dtype, trust=trust_remote_code)
            tokenizer = _tokenizer(checkpoint.path, trust_remote_code)
        model = model.to(device).eval()
    except DeltaLensError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise DeltaLensError(f"{checkpoint.path}: too large for {device}") from error
    except BaseException as error:  # Of transformers or of the model's code: they promise no kind.
        if not is_library_error(error):
            raise
        raise DeltaLensError(
            f"{checkpoint.path}: transformers cannot load it: {_reason(error)}"
        ) from error
    again = functools.partial(load_model, checkpoint, dtype, device, trust_remote_code)
    return LoadedModel(model, tokenizer, device, tuple(sorted(info["missing_keys"])), again)


def _reason(error: BaseException) -> str:
    """An error of transformers on one line, without the report that it only logs."""
    if "ignore_mismatched_sizes" in str(error):
        return "its config.json asks for other shapes than its weights have"
    return describe_error(error)


def _loader(checkpoint: Checkpoint, trust: bool | None) -> Any:
    import transformers

    if (found := class_of(checkpoint.config)) is not None:
        return found
    if "auto_map" in checkpoint.config and not trust:
        raise CheckpointError(own_code(checkpoint.path, trust))
    return transformers.AutoModelForCausalLM


def _tokenizer(path: Path, trust: bool | None) -> Any | None:
    if not any(path.glob("tokenizer*")) and not any(path.glob("vocab*")):
        return None
    return read_tokenizer(path, trust)
