"""Loading a model from a local checkpoint folder, after checking that it fits into memory."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltalens.errors import CheckpointError, DeltaLensError, describe_error, is_library_error
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.config import check_config, check_size
from deltalens.io.header import FLOATS
from deltalens.io.platform import quiet_panics
from deltalens.io.pretrained import (
    class_of,
    classifier_of,
    custom_code_message,
    read_model,
    read_tokenizer,
)
from deltalens.io.tying import skeleton
from deltalens.scoring.file_scoring import batch_positions
from deltalens.scoring.labels import Labels

__all__ = [
    "CGROUPS",
    "Head",
    "LoadedModel",
    "Loading",
    "check_fits",
    "free_memory",
    "load_model",
    "models_per_device",
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


@dataclass(frozen=True)
class Head:
    """A new head over sequences, for a checkpoint that has none."""

    labels: Labels
    """What it predicts."""
    seed: int
    """Of its weights."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode, and its tokenizer."""

    model: nn.Module
    tokenizer: Any | None
    """None if the folder has no tokenizer."""
    device: torch.device
    fresh: tuple[str, ...]
    """Parameters that the checkpoint lacks and transformers initialized at random."""
    again: Callable[[], LoadedModel] | None = None
    """Loads the same model once more."""


@dataclass(frozen=True)
class Loading:
    """How the models of a study are loaded."""

    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool | None = None

    @property
    def one_device(self) -> bool:
        """Whether the device has an index, so that models are not spread over several devices."""
        return self.device.index is not None

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """Load a model with these options; see `load_model`.

        Args:
            checkpoint: the model's checkpoint.

        Returns:
            The model.

        Raises:
            DeltaLensError: see `load_model`.
        """
        return load_model(checkpoint, self.dtype, self.device, self.trust_remote_code)


def pick_device(name: str) -> torch.device:
    """Choose a device.

    Args:
        name: a torch device, such as `cpu` or `cuda:1`; `auto`: CUDA if available, else the CPU.

    Returns:
        The device.

    Raises:
        DeltaLensError: the device cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        why = textwrap.shorten(str(error).split(". ")[0], 120, placeholder=" ...")
        raise DeltaLensError(
            f"device {name!r} cannot be used: {why}; choose auto, cpu or cuda"
        ) from error
    return device


def pick_dtype(name: str, checkpoint: Checkpoint) -> torch.dtype:
    """Choose a dtype.

    Args:
        name: the dtype's name; `auto`: the dtype that most entries of the checkpoint have.
        checkpoint: the checkpoint that will be loaded.

    Returns:
        The torch dtype.

    Raises:
        DeltaLensError: there is no such dtype.
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


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool | None = None,
    head: Head | None = None,
) -> LoadedModel:
    """Load a model with the class that its configuration names, from local files only.

    Args:
        checkpoint: the checkpoint, a folder.
        dtype: dtype of the parameters.
        device: device of the parameters.
        trust_remote_code: whether to run code that is stored with the checkpoint. None means no,
            where the caller offers no such option.
        head: load it with this head instead of its own; `fresh` names the head's parameters.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        DeltaLensError: there is no configuration, or it describes a far larger model than the
            checkpoint stores; transformers does not have the class, and custom code is not trusted;
            or transformers cannot load the model (the message has its reason).
    """
    if not checkpoint.path.is_dir() or not checkpoint.config:
        raise DeltaLensError(
            f"{checkpoint.path}: a study loads the model, which takes a folder with a config.json; "
            "`inspect` and `drop` do without"
        )
    check_config(checkpoint)
    loader = _loader(checkpoint, trust_remote_code) if head is None else _classifier(checkpoint)
    options = {} if head is None else head.labels.config()
    empty = skeleton(checkpoint.config)
    if empty is not None:
        check_size(checkpoint, empty)
    try:
        with quiet_panics(), _drawn_from(head):
            model, info = read_model(
                checkpoint.path, loader, dtype=dtype, trust=trust_remote_code, **options
            )
            tokenizer = _tokenizer(checkpoint.path, trust_remote_code)
        model = model.to(device).eval()
    except DeltaLensError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise DeltaLensError(f"{checkpoint.path}: too large for {device}") from error
    except BaseException as error:  # transformers and the model's code raise all kinds.
        if not is_library_error(error):
            raise
        raise DeltaLensError(
            f"{checkpoint.path}: transformers cannot load it: {_reason(error)}"
        ) from error
    again = functools.partial(load_model, checkpoint, dtype, device, trust_remote_code, head)
    return LoadedModel(model, tokenizer, device, tuple(sorted(info["missing_keys"])), again)


def _reason(error: BaseException) -> str:
    """An error of transformers on one line. It logs the details of mismatched shapes only."""
    if "ignore_mismatched_sizes" in str(error):
        return "its config.json describes other shapes than its weights have"
    return describe_error(error)


def _loader(checkpoint: Checkpoint, trust: bool | None) -> Any:
    import transformers

    if (model_class := class_of(checkpoint.config)) is not None:
        return model_class
    if "auto_map" in checkpoint.config and not trust:
        raise CheckpointError(custom_code_message(checkpoint.path, trust))
    return transformers.AutoModelForCausalLM


def _classifier(checkpoint: Checkpoint) -> Any:
    if (model_class := classifier_of(checkpoint.config)) is not None:
        return model_class
    raise CheckpointError(
        f"{checkpoint.path}: rows with labels need a head for classification, and transformers has "
        f"none for models of type {str(checkpoint.config.get('model_type'))[:80]!r}"
    )


@contextmanager
def _drawn_from(head: Head | None) -> Iterator[None]:
    """Draw a new head's weights from its seed; the global generator is as before afterwards."""
    if head is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(head.seed).get_state())
        yield


def _tokenizer(path: Path, trust: bool | None) -> Any | None:
    if not any(path.glob("tokenizer*")) and not any(path.glob("vocab*")):
        return None
    return read_tokenizer(path, trust)
