"""Callbacks for `transformers.Trainer`, and so for TRL's trainers."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from deltalens.probes.gradient import GradientProbe

__all__ = ["GradientProbeCallback"]


class GradientProbeCallback(TrainerCallback):
    """A `GradientProbe` for the length of `trainer.train()`; the reference model of DPO is never
    touched.

    Args:
        log_dir: the run's folder; must be new.
        options: as `GradientProbe` takes them.
    """

    def __init__(self, log_dir: str | Path, **options: Any) -> None:
        self.log_dir, self.options = log_dir, options
        self.probe: GradientProbe | None = None
        """The probe, once the training has begun."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach."""
        options = {"first_step": state.global_step, **self.options}
        self.probe = GradientProbe(kwargs["model"], self.log_dir, **options).attach()
        # A training that raises ends without a word to its callbacks.
        weakref.finalize(self, self.probe.detach)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach, and close the run."""
        if self.probe is not None:
            self.probe.detach()
