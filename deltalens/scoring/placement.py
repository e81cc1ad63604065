"""Where a model's parts are: on one device, or spread over several by accelerate's hooks."""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltalens.errors import DeltaLensError, fault_list
from deltalens.io.folders import temporary_folder

__all__ = [
    "DeviceMap",
    "check_device_map",
    "check_gradients",
    "hooks_of",
    "input_device",
    "offload_folder",
    "placing",
]

DeviceMap = str | Mapping[str, str | int]
"""As transformers takes it: `auto`, `balanced`, ..., or module -> device, `cpu` or `disk`."""
_NAMED = ("auto", "balanced", "balanced_low_0", "sequential")
_FOLDER = "deltalens-offload"
_FOLDERS: weakref.WeakKeyDictionary[nn.Module, Path] = weakref.WeakKeyDictionary()


def check_device_map(
    device_map: DeviceMap | None, device: str, jobs: int = 1, executor: str | None = None
) -> None:
    """Refuse a device map that cannot be used, before anything is loaded.

    Args:
        device_map: as the caller gave it.
        device: the device that the caller named, or `auto`.
        jobs: cells that are measured at the same time.
        executor: name of what measures them, if the caller named it.

    Raises:
        DeltaLensError: says what to change.
    """
    if device_map is None:
        return
    if isinstance(device_map, str) and device_map not in _NAMED:
        raise DeltaLensError(
            f"device_map {device_map!r}: choose one of {', '.join(_NAMED)}, or name devices of "
            "modules: model.layers.0=cuda:0"
        )
    if device != "auto":
        raise DeltaLensError(f"device {device!r} and device_map: give one of them")
    if jobs > 1 and executor in (None, "processes"):
        raise DeltaLensError(
            f"jobs {jobs} and device_map: a device map spreads one model over all devices, so that "
            "there is no room for a second one; use one job"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise DeltaLensError("device_map needs accelerate: pip install accelerate")


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """List accelerate's hooks on a module.

    Args:
        module: any module.

    Yields:
        The hooks, those inside a sequence of hooks included.
    """
    pending = [getattr(module, "_hf_hook", None)]
    while pending:
        hook = pending.pop()
        if hook is not None:
            pending += getattr(hook, "hooks", ())
            yield hook


def input_device(model: nn.Module) -> torch.device:
    """Choose the device for a model's inputs. Its outputs come back on the same one.

    Args:
        model: on one device, or spread over several by accelerate.

    Returns:
        The device on which accelerate computes what is on no other; else that of the parameters.
    """
    for hook in hooks_of(model):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(model.parameters()).device


def offload_folder(model: nn.Module) -> Path:
    """Find the temporary folder for the weights that a model has on the disk.

    Args:
        model: the model.

    Returns:
        A folder of its own, which is removed once the model is garbage.

    Raises:
        DeltaLensError: it cannot be created.
    """
    if model not in _FOLDERS:
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder(_FOLDER))
            _keep(folder, model, stack)
    return _FOLDERS[model]


@contextmanager
def placing(
    device_map: DeviceMap | None,
) -> Iterator[tuple[dict[str, Any], Callable[[nn.Module], None]]]:
    """Load a model by a device map.

    Args:
        device_map: the map; None: there is none.

    Yields:
        The arguments for `from_pretrained`, and what the model has to be given to, so that the
        folder of its weights on the disk stays as long as the model.

    Raises:
        DeltaLensError: the folder cannot be created.
    """
    if device_map is None:
        yield {}, lambda model: None
        return
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder(_FOLDER))
        given = device_map if isinstance(device_map, str) else dict(device_map)
        options = {"device_map": given, "offload_folder": str(folder)}
        yield options, lambda model: _keep(folder, model, stack)


def _keep(folder: Path, model: nn.Module, stack: ExitStack) -> None:
    """Leave a folder to its model."""
    _FOLDERS[model] = folder
    weakref.finalize(model, stack.pop_all().close)


def check_gradients(model: nn.Module) -> None:
    """Refuse a model some of whose weights have no memory between two forward passes.

    Args:
        model: the model, whose weights are to get gradients.

    Raises:
        DeltaLensError: names weights that are offloaded.
    """
    away = [name for name, each in model.named_parameters() if each.device.type == "meta"]
    if away:
        title = (
            "device_map: accelerate computes no gradients of offloaded weights; name devices that "
            "hold the whole model, or use a smaller `dtype`. Offloaded are:"
        )
        raise DeltaLensError(fault_list(title, away))
