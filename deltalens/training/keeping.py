"""The ordinary model that a model in training would become now, and writing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deltalens.errors import DeltaLensError, errors_from, fault_list
from deltalens.training.methods import Ready

__all__ = ["PlainStates", "write_model"]


class PlainStates:
    """Takes the ordinary model's tensors from a model in training, which stays as it is.

    Args:
        model: as it was loaded, before a method makes it ready.
        method: the method's name, for messages.
    """

    def __init__(self, model: Any, method: str) -> None:
        self._model, self._method = model, method
        self._names = [*model.state_dict()]

    def check(self, ready: Ready) -> None:
        """Check that there will be such tensors.

        Args:
            ready: the model made ready for the method.

        Raises:
            DeltaLensError: the method's model has none before its end; lists the missing tensors.
        """
        found = self.take(ready)
        missing = [name for name in self._names if name not in found]
        if missing:
            title = (
                f"method {self._method!r} gives no ordinary model before the training's end, so no "
                "checkpoint can be kept (its `Ready.plain_state` lacks these tensors):"
            )
            raise DeltaLensError(fault_list(title, missing))

    def take(self, ready: Ready) -> dict[str, Tensor]:
        """Take them as they are now: masks, sparse values and adapters merged.

        Args:
            ready: the model made ready for the method.

        Returns:
            Name -> tensor; not copies where the model in training has the same.
        """
        state = (ready.plain_state or self._model.state_dict)()
        return {name: state[name] for name in self._names if name in state}


def write_model(
    model: Any,
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model as an ordinary checkpoint.

    Args:
        model: a transformers model; training may have switched its cache off.
        folder: where to write it.
        config: the configuration of the checkpoint that was trained, which says whether the cache
            is used.
        state: tensors to write in place of the model's own.

    Raises:
        DeltaLensError: transformers cannot write it.
    """
    in_training = model.config.use_cache
    model.config.use_cache = bool(config.get("use_cache", True))
    try:
        with errors_from("transformers", f"{folder}: cannot be written"):
            model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.use_cache = in_training
