"""Trainings as a paper has them: settings under a name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deltalens.catalog.methods import METHODS, options_of
from deltalens.errors import DeltaLensError

__all__ = ["paper_settings"]

_NAME = "mft-paper"


class _Model(NamedTuple):
    learning_rate: float
    blocks: Mapping[str, str]
    """Domain -> the four blocks that the local runs mask."""


_MODELS = {
    "llama2-7b": _Model(2e-5, {"maths": "4-7", "code": "20-23", "instructions": "0-3"}),
    "llama3.1-8b": _Model(5e-6, {"maths": "24-27", "code": "20-23", "instructions": "24-27"}),
}


def paper_settings(
    name: str, methods: Sequence[str], given: Mapping[str, Any], swept: Sequence[str] = ()
) -> dict[str, Any]:
    """Settings of `TrainingSpec` as MFT's paper and public code have them (2503.22764), where they
    are not given: 2 epochs, the learning rate, steps of 128 rows, 10 % of the weights of four
    blocks, a linear schedule after 3 % warm-up, fused AdamW, no weight decay, no clipping.

    Args:
        name: `mft-paper[:MODEL[:DOMAIN]]`: the learning rate is that of MODEL (`llama2-7b` if not
            given, or `llama3.1-8b`); of DOMAIN (`maths`, `code`, `instructions`) are the blocks,
            which are all if not given.
        methods: that train with them.
        given: settings that were given: they stay. None: not given.
        swept: settings that a study goes through.

    Raises:
        DeltaLensError: no such recipe, or one that says nothing of a method.
    """
    recipe, model, domain = (*name.split(":"), "", "")[:3]
    known = _MODELS.get(model or "llama2-7b")
    if recipe != _NAME or name.count(":") > 2 or known is None:
        raise DeltaLensError(
            f"recipe {name!r}: {_NAME}, or {_NAME}:MODEL, with {' or '.join(_MODELS)}"
        )
    if domain and domain not in known.blocks:
        raise DeltaLensError(f"recipe {name!r}: {domain!r}: choose {', '.join(known.blocks)}")
    other = [method for method in methods if method in METHODS and METHODS[method].paper == "GMT"]
    if other:
        raise DeltaLensError(f"recipe {name!r}: says nothing of {', '.join(other)}")
    own: dict[str, Any] = {"mask_ratio": "0.1", "blocks": known.blocks[domain] if domain else None}
    if given.get("threshold") is not None:
        own["mask_ratio"] = None
    if given.get("include") is not None:
        own["blocks"] = None
    settings: dict[str, Any] = {
        "epochs": 2.0,
        "batch_size": 8,
        "accumulate": 16,
        "learning_rate": known.learning_rate,
        "weight_decay": 0.0,
        "warmup": 0.03,
        **{
            option: value
            for option, value in own.items()
            if option not in swept and any(option in options_of(method) for method in methods)
        },
        **{option: value for option, value in given.items() if value is not None},
    }
    options = {
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        # Of transformers: no clipping.
        "max_grad_norm": 0.0,
    }
    return {**settings, "recipe": {**options, **(given.get("recipe") or {})}}
