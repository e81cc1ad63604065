"""What happens between the steps of a training: progress, metrics, evaluations, interruptions."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

from deltalens.io.records import TrainingFolder
from deltalens.io.records.checkpoints import steps_of
from deltalens.io.stopping import on_request
from deltalens.scoring.planning import StudyPlan
from deltalens.training.choosing import Chooser

__all__ = ["Following", "NothingLeft", "TrainingWatch"]


@dataclass
class TrainingWatch:
    """How a training tells what it is doing; every hook may be left as it is."""

    stage: Callable[[str, int | None], None] = field(default=lambda name, total: None)
    """A stage begins: its name, and its number of steps if known."""
    at: Callable[[int, int], None] = field(default=lambda done, total: None)
    """Steps done, and steps in all."""
    say: Callable[[str], None] = field(default=lambda text: None)
    """The latest figures, on one line."""
    on_plan: Callable[[StudyPlan], None] | None = None
    """Everything is checked, and nothing has begun: what the training would take."""


class NothingLeft(Exception):
    """The last checkpoint is that of the last step, so nothing is left to train. (A trainer would
    take one more step: it checks whether a step was the last one after the step only.)"""


class Following(TrainerCallback):
    """A trainer's callback: logs metrics, evaluates, and stops at Ctrl-C.

    Args:
        folder: the training's; gets metrics and checkpoints.
        watch: told of progress.
        evaluate: measures the model after a step, given the step.
        every: steps between evaluations.
        chooser: measures held-out rows as often, or after every tenth of the training.
        keep: writes the model after a step as a checkpoint that stays, given the step; None: the
            trainer's own checkpoints are all there are, and are removed at the end.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        watch: TrainingWatch,
        evaluate: Callable[[int], object],
        every: int | None,
        chooser: Chooser | None,
        keep: Callable[[int], None] | None = None,
    ) -> None:
        self.folder, self.watch, self.evaluate = folder, watch, evaluate
        self.every, self.chooser, self.keep = every, chooser, keep
        self.interrupted = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C, SIGTERM and a closing terminal end the training after the current step, with
        a checkpoint; a second Ctrl-C ends it at once.

        Yields:
            For the length of the training.
        """

        def stop(number: int, frame: Any) -> None:
            if self.interrupted and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.interrupted = True
            with suppress(OSError):  # The terminal may be gone.
                self.watch.say("stopping after this step; a checkpoint is written first")

        with on_request(stop):
            yield

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint has been loaded, if there is one.

        Raises:
            NothingLeft: it is that of the last step.
        """
        if self.folder.last is not None and self.folder.last.last:
            raise NothingLeft

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Progress, and the evaluation if it is due."""
        self.folder.taken += 1
        self.watch.at(state.global_step, state.max_steps)
        last = state.global_step >= state.max_steps
        if self.interrupted and not last:
            control.should_save = control.should_training_stop = True
        self.interrupted = self.interrupted and not last
        if self.every and state.global_step % self.every == 0 and not last:
            self.evaluate(state.global_step)
        often = self.every or max(1, state.max_steps // 10)
        if self.chooser is not None and (state.global_step % often == 0 or last):
            line = {"step": state.global_step, "choosing": self.chooser.look(state.global_step)}
            self.folder.metrics.add(line)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A line of the metrics."""
        logs = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        line = {"step": state.global_step, "loss": float(logs["loss"])}
        for name in ("learning_rate", "grad_norm", "rewards/accuracies", "rewards/margins"):
            if name in logs:
                line[name] = float(logs[name])
        self.folder.metrics.add(line)
        self.watch.say(f"loss {line['loss']:.4f}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint has been written."""
        step = state.global_step
        last = step >= state.max_steps
        # Not where Ctrl-C happened to come: with and without a resume the same ones stay. And
        # before the seal: whoever resumes from here has those up to here.
        if self.keep is not None and (last or step % args.save_steps == 0):
            self.keep(step)
        best = self.chooser.best(step) if self.chooser is not None else None
        self.folder.complete(step, last, best)
        if self.chooser is not None:
            self.chooser.tidy(steps_of(self.folder.checkpoints))
