"""Trainings as a paper has them: settings under a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deltalens.errors import DeltaLensError
from deltalens.training.methods import method_class

__all__ = ["PaperSettings", "paper_settings"]

_NAME = "mft-paper"


class _Model(NamedTuple):
    learning_rate: float
    blocks: Mapping[str, str]
    """Domain -> the four blocks that the local runs mask."""


_MODELS = {
    "llama2-7b": _Model(2e-5, {"maths": "4-7", "code": "20-23", "instructions": "0-3"}),
    "llama3.1-8b": _Model(5e-6, {"maths": "24-27", "code": "20-23", "instructions": "24-27"}),
}


class PaperSettings(NamedTuple):
    """What a named recipe says, where a user says nothing."""

    shared: dict[str, Any]
    """Fields of `TrainingSpec`, as the recipe has them."""
    own: dict[str, Any]
    """Settings of methods, for those that have them."""


def paper_settings(name: str, methods: Sequence[str]) -> PaperSettings:
    """Settings as MFT's paper and public code have them (2503.22764).

    2 epochs, the model's learning rate, steps of 128 rows, 10 % of the weights of four blocks, a
    linear schedule after 3 % warm-up, fused AdamW, no weight decay, no clipping.

    Args:
        name: `mft-paper[:MODEL[:DOMAIN]]`: the learning rate is that of MODEL (`llama2-7b`, or
            `llama3.1-8b`); the blocks are those of DOMAIN (`maths`, `code`, `instructions`), or
            all.
        methods: names of those that train with them.

    Returns:
        The settings.

    Raises:
        DeltaLensError: no such recipe, or one that says nothing about a method.
    """
    recipe, model, domain = (*name.split(":"), "", "")[:3]
    known = _MODELS.get(model or "llama2-7b")
    if recipe != _NAME or name.count(":") > 2 or known is None:
        raise DeltaLensError(
            f"recipe {name!r}: {_NAME}, or {_NAME}:MODEL, with {' or '.join(_MODELS)}"
        )
    if domain and domain not in known.blocks:
        raise DeltaLensError(f"recipe {name!r}: {domain!r}: choose {', '.join(known.blocks)}")
    others = [method for method in methods if method_class(method).facts.paper == "GMT"]
    if others:
        raise DeltaLensError(f"recipe {name!r}: says nothing about {', '.join(others)}")
    shared: dict[str, Any] = {
        "epochs": 2.0,
        "batch_size": 8,
        "accumulate": 16,
        "learning_rate": known.learning_rate,
        "weight_decay": 0.0,
        "warmup": 0.03,
        "recipe": {
            "lr_scheduler_type": "linear",
            "optim": "adamw_torch_fused",
            # Of transformers: no clipping.
            "max_grad_norm": 0.0,
        },
    }
    return PaperSettings(shared, {"mask_ratio": "0.1"} | _blocks(known, domain))


def _blocks(model: _Model, domain: str) -> dict[str, str]:
    return {"blocks": model.blocks[domain]} if domain else {}
