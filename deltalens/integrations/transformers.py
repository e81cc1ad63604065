"""Callbacks for `transformers.Trainer`, and so for TRL's trainers."""

from __future__ import annotations

import abc
import weakref
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import TrainerCallback

from deltalens.gradients import Subscriber
from deltalens.methods.baselines import HalfFreeze, RandomMask
from deltalens.methods.gmt import GradientMask, Ratio
from deltalens.probes.gradient import GradientProbe

__all__ = [
    "GradientMaskCallback",
    "GradientProbeCallback",
    "HalfFreezeCallback",
    "RandomMaskCallback",
]

S = TypeVar("S", bound=Subscriber)


class _Attaching(TrainerCallback, Generic[S]):
    """Attached for the length of `trainer.train()`; the reference model of DPO is never touched.

    Args:
        options: what is attached takes them.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.attached: S | None = None
        """What was attached, once the training has begun."""

    @abc.abstractmethod
    def _made(self, model: Any, first_step: int) -> S: ...

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach."""
        made = self._made(kwargs["model"], state.global_step)
        made.attach()
        self.attached = made
        # A training that raises ends without a word to its callbacks.
        weakref.finalize(self, made.detach)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach."""
        if self.attached is not None:
            self.attached.detach()


class GradientProbeCallback(_Attaching[GradientProbe]):
    """A `GradientProbe` for the length of a training.

    Args:
        log_dir: the run's folder; must be new.
        options: as `GradientProbe` takes them.
    """

    def __init__(self, log_dir: str | Path, **options: Any) -> None:
        super().__init__(**options)
        self.log_dir = log_dir

    def _made(self, model: Any, first_step: int) -> GradientProbe:
        return GradientProbe(model, self.log_dir, **{"first_step": first_step, **self.options})


class GradientMaskCallback(_Attaching[GradientMask]):
    """Gradient-Mask Tuning for the length of a training.

    Args:
        mask_ratio: the fraction masked out.
        options: as `GradientMask` takes them.
    """

    def __init__(self, mask_ratio: Ratio = 0.2, **options: Any) -> None:
        super().__init__(mask_ratio=mask_ratio, **options)

    def _made(self, model: Any, first_step: int) -> GradientMask:
        return GradientMask(model, **{"first_step": first_step, **self.options})


class RandomMaskCallback(_Attaching[RandomMask]):
    """Random masks for the length of a training.

    Args:
        mask_ratio: the fraction masked out.
        options: as `RandomMask` takes them.
    """

    def __init__(self, mask_ratio: Ratio = 0.2, **options: Any) -> None:
        super().__init__(mask_ratio=mask_ratio, **options)

    def _made(self, model: Any, first_step: int) -> RandomMask:
        return RandomMask(model, **{"first_step": first_step, **self.options})


class HalfFreezeCallback(_Attaching[HalfFreeze]):
    """Half of the layers frozen for the length of a training.

    Args:
        options: as `HalfFreeze` takes them.
    """

    def _made(self, model: Any, first_step: int) -> HalfFreeze:
        return HalfFreeze(model, **self.options)
