"""What each method does to a model before it is trained, and to what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deltalens.errors import said_by
from deltalens.integrations.transformers import (
    Attaching,
    GradientMaskCallback,
    HalfFreezeCallback,
    RandomMaskCallback,
)
from deltalens.methods.mft import MaskTuning
from deltalens.methods.weight_masks import WeightMasks, l1_weight_mask, random_weight_mask
from deltalens.training.asked import TrainingAsked
from deltalens.training.lora import adapted

__all__ = ["Ready", "method_callbacks", "prepare"]


@dataclass(frozen=True)
class Ready:
    """A model made ready for a method."""

    model: nn.Module
    """What is trained."""
    callbacks: tuple[Attaching[Any], ...] = ()
    masks: Callable[[], WeightMasks] | None = None
    """The masks of weights as they are now, where the method has such."""
    plain: Callable[[], nn.Module] = field(default=lambda: nn.Module())
    """The ordinary model that comes out; called once, at the end."""
    trains: bool = True
    """Whether there are steps to take."""
    watched: Mapping[str, Any] = field(default_factory=dict)
    """What a probe is told beside its options."""
    notes: tuple[str, ...] = ()
    """What a user should know about how the method took this model."""


def prepare(asked: TrainingAsked, model: nn.Module) -> Ready:
    """Make a model ready for a method; what is warned of on the way is among the notes.

    Raises:
        DeltaLensError: the method's settings do not fit the model, or peft is not installed.
    """
    if asked.method == "mft":
        tuning = MaskTuning(
            model,
            **_layers(asked),
            **_ratio(asked),
            rank_by=asked.own("rank_by"),
            init_std=asked.own("init_std"),
            seed=asked.seed,
        )
        return Ready(
            model,
            masks=tuning.weight_masks,
            plain=tuning.merge,
            watched={"learned": tuning.packed_masks},
        )
    if asked.method in ("random-mask-weights", "l1-mask"):
        if asked.method == "l1-mask":
            masks = l1_weight_mask(model, **_layers(asked), **_ratio(asked))
        else:
            masks = random_weight_mask(model, **_layers(asked), **_ratio(asked), seed=asked.seed)

        def merged() -> nn.Module:
            masks.merge()
            return model

        return Ready(model, masks=lambda: masks, plain=merged, trains=False)
    if asked.method == "lora":
        rank, alpha, dropout = map(asked.own, ("lora_rank", "lora_alpha", "lora_dropout"))
        made, notes = adapted(model, rank, alpha, dropout)

        def whole() -> nn.Module:
            with said_by("peft", "the adapters cannot be merged"):
                merged: nn.Module = made.merge_and_unload()
            return merged

        return Ready(made, plain=whole, notes=notes)
    return Ready(model, tuple(method_callbacks(asked)), plain=lambda: model)


def method_callbacks(asked: TrainingAsked) -> Iterator[Attaching[Any]]:
    """What a method attaches to a training: nothing for plain fine-tuning."""
    common: dict[str, Any] = {"include": asked.include, "exclude": asked.exclude}
    if asked.method == "gmt":
        yield GradientMaskCallback(
            asked.ratios[""], scope=asked.own("scope"), apply_to=asked.own("apply_to"), **common
        )
    elif asked.method == "random-mask":
        yield RandomMaskCallback(
            asked.ratios[""], apply_to=asked.own("apply_to"), seed=asked.seed, **common
        )
    elif asked.method == "hft":
        yield HalfFreezeCallback(seed=asked.seed, **common)


def _layers(asked: TrainingAsked) -> dict[str, Any]:
    kinds = [kind.strip() for kind in asked.own("modules").split(",")]
    return {"blocks": asked.own("blocks"), "modules": kinds, "include": asked.include}


def _ratio(asked: TrainingAsked) -> dict[str, Any]:
    if asked.threshold is not None:
        return {"threshold": asked.threshold}
    ratios = asked.ratios
    return {"mask_ratio": ratios[""] if {*ratios} == {""} else ratios}
