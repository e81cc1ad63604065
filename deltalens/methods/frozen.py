"""What a model needs whose own parameters are all frozen."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["let_gradients_in"]


def let_gradients_in(model: nn.Module) -> list[RemovableHandle]:
    """Make a frozen embedding's output require gradients, for reentrant checkpointing.

    Reentrant checkpointing computes no gradients inside a block whose input requires none, and no
    input does behind a frozen embedding.

    Args:
        model: a model whose embedding is frozen.

    Returns:
        The hooks that do it; none where no embedding is known.
    """
    embedding_of: Callable[[], Any] | None = getattr(model, "get_input_embeddings", None)
    try:
        embedding = embedding_of() if embedding_of is not None else None
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Module):
        return []
    model_ref = weakref.ref(model)

    def let_in(module: nn.Module, args: Any, output: Any) -> None:
        current_model = model_ref()
        if (
            isinstance(output, Tensor)
            and torch.is_grad_enabled()
            and not output.requires_grad
            and current_model is not None
            and any(map(_is_reentrant, current_model.modules()))
        ):
            output.requires_grad_(True)

    return [embedding.register_forward_hook(let_in)]


def _is_reentrant(module: nn.Module) -> bool:
    how = getattr(module, "_gradient_checkpointing_func", None)
    return (
        bool(getattr(module, "gradient_checkpointing", False))
        and isinstance(how, functools.partial)
        and bool(how.keywords.get("use_reentrant", False))
    )
