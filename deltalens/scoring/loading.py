"""Loading a model from a local checkpoint folder."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from deltalens.scoring.labels import Labels
from deltalens.scoring.memory import check_fits
from deltalens.scoring.placement import DeviceMap, input_device, placing

__all__ = [
    "Head",
    "LoadedModel",
    "Loading",
    "check_is_model",
    "load_model",
    "pick_device",
    "pick_dtype",
]

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


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
    """Where it takes its inputs, and returns its outputs."""
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
    device_map: DeviceMap | None = None
    """How accelerate spreads each of them over several devices; None: it is on `device`."""

    def check_fits(self, checkpoint: Checkpoint, batch_tokens: int, jobs: int = 1) -> None:
        """Refuse a model that does not fit into memory; see `check_fits`. By a device map, what
        fits nowhere else is left on the disk.

        Args:
            checkpoint: the model's checkpoint.
            batch_tokens: tokens per batch.
            jobs: number of models that are loaded in parallel.

        Raises:
            DeltaLensError: see `check_fits`.
        """
        if self.device_map is None:
            check_fits(checkpoint, self.dtype, self.device, batch_tokens, jobs)

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        """Load a model with these options; see `load_model`.

        Args:
            checkpoint: the model's checkpoint.

        Returns:
            The model.

        Raises:
            DeltaLensError: see `load_model`.
        """
        head, trust = None, self.trust_remote_code
        return load_model(checkpoint, self.dtype, self.device, trust, head, self.device_map)


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


def check_is_model(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is no folder with a configuration.

    Args:
        checkpoint: the checkpoint.

    Raises:
        DeltaLensError: says what a model takes.
    """
    if not checkpoint.path.is_dir() or not checkpoint.config:
        raise DeltaLensError(
            f"{checkpoint.path}: a study loads the model, which takes a folder with a config.json; "
            "`inspect` and `drop` do without"
        )


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool | None = None,
    head: Head | None = None,
    device_map: DeviceMap | None = None,
) -> LoadedModel:
    """Load a model with the class that its configuration names, from local files only.

    Args:
        checkpoint: the checkpoint, a folder.
        dtype: dtype of the parameters.
        device: device of the parameters.
        trust_remote_code: whether to run code that is stored with the checkpoint. None means no,
            where the caller offers no such option.
        head: load it with this head instead of its own; `fresh` names the head's parameters.
        device_map: spread it over several devices, the CPU and the disk, by accelerate's hooks;
            None: all of it is put on `device`.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        DeltaLensError: there is no configuration, or it describes a far larger model than the
            checkpoint stores; transformers does not have the class, and custom code is not trusted;
            or transformers cannot load the model (the message has its reason).
    """
    check_is_model(checkpoint)
    check_config(checkpoint)
    loader = _loader(checkpoint, trust_remote_code) if head is None else _classifier(checkpoint)
    options: dict[str, Any] = {} if head is None else head.labels.config()
    empty = skeleton(checkpoint.config)
    if empty is not None:
        check_size(checkpoint, empty)
    try:
        with quiet_panics(), _drawn_from(head), placing(device_map) as (placement, placed):
            model, info = read_model(
                checkpoint.path,
                loader,
                dtype=dtype,
                trust=trust_remote_code,
                **options,
                **placement,
            )
            placed(model)
            tokenizer = _tokenizer(checkpoint.path, trust_remote_code)
        if device_map is None:
            model = model.to(device)
        model.eval()
    except DeltaLensError:
        raise
    except torch.cuda.OutOfMemoryError as error:
        where = "this device_map" if device_map is not None else str(device)
        raise DeltaLensError(f"{checkpoint.path}: too large for {where}") from error
    except BaseException as error:  # transformers and the model's code raise all kinds.
        if not is_library_error(error):
            raise
        raise DeltaLensError(
            f"{checkpoint.path}: transformers cannot load it: {_reason(error)}"
        ) from error
    again = functools.partial(
        load_model, checkpoint, dtype, device, trust_remote_code, head, device_map
    )
    takes_inputs = input_device(model)
    return LoadedModel(model, tokenizer, takes_inputs, tuple(sorted(info["missing_keys"])), again)


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
