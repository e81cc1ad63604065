"""What each method does to a model before it is trained, and to what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deltalens.errors import errors_from
from deltalens.integrations.transformers import (
    GradientMaskCallback,
    HalfFreezeCallback,
    RandomMaskCallback,
    SubscriberCallback,
)
from deltalens.methods.mft import MaskTuning
from deltalens.methods.weight_masks import WeightMasks, l1_weight_mask, random_weight_mask
from deltalens.training.lora import adapted
from deltalens.training.spec import TrainingSpec

__all__ = ["REGISTRY", "Ready", "method_callbacks", "prepare"]


@dataclass(frozen=True)
class Ready:
    """A model made ready for a method."""

    model: nn.Module
    """What is trained."""
    callbacks: tuple[SubscriberCallback[Any], ...] = ()
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


def prepare(spec: TrainingSpec, model: nn.Module) -> Ready:
    """Make a model ready for a method; what is warned of on the way is among the notes.

    Raises:
        DeltaLensError: the method's settings do not fit the model, or peft is not installed.
    """
    return REGISTRY[spec.method or "sft"](spec, model)


def method_callbacks(spec: TrainingSpec) -> list[SubscriberCallback[Any]]:
    """What a method attaches to a training: nothing for plain fine-tuning."""
    made = _ATTACH.get(spec.method or "sft")
    return [made(spec)] if made else []


def _attached(spec: TrainingSpec, model: nn.Module) -> Ready:
    return Ready(model, tuple(method_callbacks(spec)), plain=lambda: model)


def _gradient_mask(spec: TrainingSpec) -> GradientMaskCallback:
    scope, apply_to = spec.own("scope"), spec.own("apply_to")
    return GradientMaskCallback(
        spec.ratios[""], scope=scope, apply_to=apply_to, **_parameters(spec)
    )


def _random_mask(spec: TrainingSpec) -> RandomMaskCallback:
    apply_to = spec.own("apply_to")
    return RandomMaskCallback(
        spec.ratios[""], apply_to=apply_to, seed=spec.seed, **_parameters(spec)
    )


def _half_freeze(spec: TrainingSpec) -> HalfFreezeCallback:
    return HalfFreezeCallback(seed=spec.seed, **_parameters(spec))


def _learned_masks(spec: TrainingSpec, model: nn.Module) -> Ready:
    tuning = MaskTuning(
        model,
        **_layers(spec),
        **_ratio(spec),
        rank_by=spec.own("rank_by"),
        init_std=spec.own("init_std"),
        seed=spec.seed,
    )
    return Ready(
        model,
        masks=tuning.weight_masks,
        plain=tuning.merge,
        watched={"learned": tuning.packed_masks},
    )


def _l1_mask(spec: TrainingSpec, model: nn.Module) -> Ready:
    return _masked(model, l1_weight_mask(model, **_layers(spec), **_ratio(spec)))


def _random_weights(spec: TrainingSpec, model: nn.Module) -> Ready:
    masks = random_weight_mask(model, **_layers(spec), **_ratio(spec), seed=spec.seed)
    return _masked(model, masks)


def _masked(model: nn.Module, masks: WeightMasks) -> Ready:
    def merged() -> nn.Module:
        masks.merge()
        return model

    return Ready(model, masks=lambda: masks, plain=merged, trains=False)


def _adapter(spec: TrainingSpec, model: nn.Module) -> Ready:
    rank, alpha, dropout = map(spec.own, ("lora_rank", "lora_alpha", "lora_dropout"))
    made, notes = adapted(model, rank, alpha, dropout)

    def whole() -> nn.Module:
        with errors_from("peft", "the adapters cannot be merged"):
            merged: nn.Module = made.merge_and_unload()
        return merged

    return Ready(made, plain=whole, notes=notes)


def _parameters(spec: TrainingSpec) -> dict[str, Any]:
    return {"include": spec.include, "exclude": spec.exclude}


def _layers(spec: TrainingSpec) -> dict[str, Any]:
    kinds = [kind.strip() for kind in spec.own("modules").split(",")]
    return {"blocks": spec.own("blocks"), "modules": kinds, "include": spec.include}


def _ratio(spec: TrainingSpec) -> dict[str, Any]:
    if spec.threshold is not None:
        return {"threshold": spec.threshold}
    ratios = spec.ratios
    return {"mask_ratio": ratios[""] if {*ratios} == {""} else ratios}


_ATTACH: Mapping[str, Callable[[TrainingSpec], SubscriberCallback[Any]]] = {
    "gmt": _gradient_mask,
    "random-mask": _random_mask,
    "hft": _half_freeze,
}
REGISTRY: Mapping[str, Callable[[TrainingSpec, nn.Module], Ready]] = {
    "sft": _attached,
    **dict.fromkeys(_ATTACH, _attached),
    "mft": _learned_masks,
    "random-mask-weights": _random_weights,
    "l1-mask": _l1_mask,
    "lora": _adapter,
}
"""What makes a model ready: a row for each of the catalog's `TRAININGS`."""
