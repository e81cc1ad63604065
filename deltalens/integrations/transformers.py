"""Callbacks for `transformers.Trainer`, and so for TRL's trainers."""

from __future__ import annotations

import abc
import warnings
import weakref
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import TrainerCallback

from deltalens.errors import DeltaLensError
from deltalens.gradients import Subscriber
from deltalens.methods.baselines import HalfFreeze, RandomMask
from deltalens.methods.gmt import GradientMask, Ratio
from deltalens.probes.gradient import GradientProbe

__all__ = [
    "GradientMaskCallback",
    "GradientProbeCallback",
    "HalfFreezeCallback",
    "RandomMaskCallback",
    "SubscriberCallback",
]

S = TypeVar("S", bound=Subscriber)


class SubscriberCallback(TrainerCallback, Generic[S]):
    """Attached for the length of `trainer.train()`; the reference model of DPO is never touched.

    Args:
        options: what is attached takes them.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.attached: S | None = None
        """What was attached, once the training has begun."""

    @abc.abstractmethod
    def build(self, model: Any, first_step: int = 0) -> S:
        """What is to be attached to a model whose training goes on at a step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach.

        Raises:
            DeltaLensError: the training is DeepSpeed's.
        """
        if getattr(args, "deepspeed", None):
            raise DeltaLensError(
                f"{type(self).__name__}: DeepSpeed ZeRO hides the gradients of single parameters; "
                "shard with FSDP2 instead (docs/scaling.md)"
            )
        if self.attached is not None:
            self.attached.detach()
        subscriber = self.build(kwargs["model"], state.global_step)
        subscriber.attach()
        self.attached = subscriber
        # A training that raises ends without a word to its callbacks.
        weakref.finalize(self, subscriber.detach)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach."""
        if self.attached is not None:
            self.attached.detach()

    def abandon(self) -> None:
        """Detach, where a training has raised and its trainer says no more."""
        with warnings.catch_warnings():
            # That no step was seen is no news then.
            warnings.simplefilter("ignore", UserWarning)
            if self.attached is not None:
                self.attached.detach()


class GradientProbeCallback(SubscriberCallback[GradientProbe]):
    """A `GradientProbe` for the length of a training.

    Args:
        log_dir: the run's folder; must be new.
        options: as `GradientProbe` takes them.
    """

    def __init__(self, log_dir: str | Path, **options: Any) -> None:
        super().__init__(**options)
        self.log_dir = log_dir

    def build(self, model: Any, first_step: int = 0) -> GradientProbe:
        """One for this model."""
        return GradientProbe(model, self.log_dir, **{"first_step": first_step, **self.options})


class GradientMaskCallback(SubscriberCallback[GradientMask]):
    """Gradient-Mask Tuning for the length of a training.

    Args:
        mask_ratio: the fraction masked out.
        options: as `GradientMask` takes them.
    """

    def __init__(self, mask_ratio: Ratio = 0.2, **options: Any) -> None:
        super().__init__(mask_ratio=mask_ratio, **options)

    def build(self, model: Any, first_step: int = 0) -> GradientMask:
        """One for this model."""
        return GradientMask(model, **{"first_step": first_step, **self.options})


class RandomMaskCallback(SubscriberCallback[RandomMask]):
    """Random masks for the length of a training.

    Args:
        mask_ratio: the fraction masked out.
        options: as `RandomMask` takes them.
    """

    def __init__(self, mask_ratio: Ratio = 0.2, **options: Any) -> None:
        super().__init__(mask_ratio=mask_ratio, **options)

    def build(self, model: Any, first_step: int = 0) -> RandomMask:
        """One for this model."""
        return RandomMask(model, **{"first_step": first_step, **self.options})


class HalfFreezeCallback(SubscriberCallback[HalfFreeze]):
    """Half of the layers frozen for the length of a training.

    Args:
        options: as `HalfFreeze` takes them.
    """

    def build(self, model: Any, first_step: int = 0) -> HalfFreeze:
        """One for this model."""
        return HalfFreeze(model, **self.options)
