"""Checks that a checkpoint's configuration describes a model of about the size of its weights.

transformers builds the whole model before it looks at the weights, so that a damaged or hostile
`config.json` could exhaust memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deltalens.errors import CheckpointError
from deltalens.io.checkpoint import Checkpoint

__all__ = [
    "check_config",
    "check_size",
    "configured_layers",
    "counts_layers",
]

_LAYERS = ("_n_layer", "_n_layers", "_nlayer", "_nlayers")
_COUNTS = ("num_", "n_")
_ALWAYS_ALLOWED = 100_000
"""Heads, labels or positions that any model may have: so many are built quickly."""
_EXTRA_ENTRIES = 1 << 28
"""Entries that any model may have beyond those its checkpoint stores, such as a new head."""


def check_config(checkpoint: Checkpoint) -> None:
    """Refuse a configuration with far more layers, experts, heads or labels than the checkpoint
    has tensors, or rows in a tensor.

    Raises:
        CheckpointError: names the setting and both numbers.
    """
    tensors = checkpoint.tensors
    widest = max((max(entry.shape, default=1) for entry in tensors.values()), default=1)
    for key, number in _integer_settings(checkpoint.config):
        most, available = len(tensors), f"{len(tensors):,} tensors"
        if not counts_layers(key):
            most, available = max(most, widest), f"{available}, none wider than {widest:,}"
            if "experts" not in key:
                most = max(most, _ALWAYS_ALLOWED)
        if number > most and ("experts" in key or key.startswith(_COUNTS) or counts_layers(key)):
            raise CheckpointError(
                f"{checkpoint.folder / 'config.json'}: {_short(key)} is {_short(number)}, but the "
                f"checkpoint has only {available}"
            )


def check_size(checkpoint: Checkpoint, model: Any) -> None:
    """Refuse a model with far more parameters and buffers than its checkpoint stores.

    Args:
        checkpoint: the checkpoint that would be loaded into the model.
        model: the model that its configuration describes, on torch's meta device.

    Raises:
        CheckpointError: names both numbers of entries.
    """
    configured = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored = sum(entry.numel for entry in checkpoint.tensors.values())
    if configured > 4 * stored + _EXTRA_ENTRIES:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: describes a model of {configured:,} entries, "
            f"but the checkpoint has only {stored:,}"
        )


def configured_layers(settings: Mapping[str, Any]) -> int:
    """Find the largest number of layers in a configuration, those of inner models included.

    Args:
        settings: the configuration.

    Returns:
        That number; 0 if the configuration names none.
    """
    layers = (number for key, number in _integer_settings(settings) if counts_layers(key))
    return max(layers, default=0)


def _short(value: object) -> str:
    """A setting's name or value for a message: either can be as long as the file."""
    if isinstance(value, int):
        return f"{value:,}" if value < 1 << 64 else "above 2^64"
    return str(value)[:80]


def _integer_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every setting that is an integer, including those of inner models and in lists."""
    for key, value in settings.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield from _integer_settings(item)
            elif isinstance(item, int):
                yield str(key), item


def counts_layers(key: str) -> bool:
    """Tell from its name whether a setting is a number of layers.

    Args:
        key: the setting's name.

    Returns:
        Whether it is.
    """
    key = f"_{key}"
    return key.endswith(_LAYERS) or (key.endswith("layers") and "_num_" in key)
