"""What a checkpoint's configuration asks for, held against what the checkpoint has: transformers
makes the whole model before it looks at the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deltalens.errors import CheckpointError
from deltalens.io.checkpoint import Checkpoint

__all__ = ["check_config", "check_made", "layers_wanted"]

_LAYERS = ("_n_layer", "_n_layers", "_nlayer", "_nlayers")
_COUNTS = ("num_", "n_")
_FREE = 100_000
"""Of heads, labels, positions: no model of so many is slow to make."""
_FREE_ENTRIES = 1 << 28
"""That a model may have beside what its checkpoint holds, whatever that is: a new head."""


def check_config(checkpoint: Checkpoint) -> None:
    """Refuse a configuration of far more layers, experts, heads or labels than the checkpoint has
    tensors, or rows in a tensor.

    Raises:
        CheckpointError: with the setting, and both numbers.
    """
    stored = checkpoint.tensors
    widest = max((max(one.shape, default=1) for one in stored.values()), default=1)
    for key, number in _numbers(checkpoint.config):
        most, has = len(stored), f"{len(stored):,} tensors"
        if not _counts_layers(key):
            most, has = max(most, widest), f"{has}, none wider than {widest:,}"
            if "experts" not in key:
                most = max(most, _FREE)
        if number > most and ("experts" in key or key.startswith(_COUNTS) or _counts_layers(key)):
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'}: {_shown(key)} is {_shown(number)}, and the "
                f"checkpoint has {has}"
            )


def check_made(checkpoint: Checkpoint, model: Any) -> None:
    """Refuse a model that is far larger than its checkpoint: by its parameters and buffers.

    Args:
        checkpoint: what would be loaded.
        model: the model of its configuration, on torch's meta device.

    Raises:
        CheckpointError: with both numbers of entries.
    """
    spec = sum(one.numel() for one in (*model.parameters(), *model.buffers()))
    held = sum(one.numel for one in checkpoint.tensors.values())
    if spec > 4 * held + _FREE_ENTRIES:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: asks for a model of {spec:,} entries, and the "
            f"checkpoint has {held:,}"
        )


def layers_wanted(settings: Mapping[str, Any]) -> int:
    """The most layers that a configuration asks for anywhere in it."""
    return max((number for key, number in _numbers(settings) if _counts_layers(key)), default=0)


def _shown(value: object) -> str:
    """A setting or its value, for a message: either can be as long as the file."""
    if isinstance(value, int):
        return f"{value:,}" if value < 1 << 64 else "above 2^64"
    return str(value)[:80]


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every setting that is an integer, those of inner models and in lists too."""
    for key, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                yield from _numbers(one)
            elif isinstance(one, int):
                yield str(key), one


def _counts_layers(key: str) -> bool:
    """Whether a setting is a number of layers, by how it is called."""
    key = f"_{key}"
    return key.endswith(_LAYERS) or (key.endswith("layers") and "_num_" in key)
