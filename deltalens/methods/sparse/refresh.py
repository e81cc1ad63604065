"""When the masks of a dynamic sparse tuning are renewed (SPEFT, Algorithm 1)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from deltalens.gradients.hooks import StepCall, unwatch, watch

__all__ = ["Renewable", "StepsOfValues"]


class Renewable(Protocol):
    """What has values that optimizers step, and masks that can be renewed."""

    def parameters(self) -> Sequence[nn.Parameter]:
        """The values.

        Returns:
            One parameter per layer.
        """
        ...

    def write(self) -> None:
        """Write base + values into the weights."""

    def renew(self, number: int) -> None:
        """Make a new mask.

        Args:
            number: of the renewal, from 1.
        """


class StepsOfValues:
    """Counts the optimizer steps of a tuning's values, and renews its masks when that is due.

    A mask is due before step t, counted from 1, if t is a multiple of the interval, so that the
    first span is one step shorter than the others. The new mask is made in the next forward pass
    that computes gradients, so that an evaluation in between still sees the old one; at the latest
    when the step begins, as where its closure computes them, or the model was not called as a
    whole. Gradients of the old mask's values are lost then.

    Every parameter of the values may have an optimizer of its own: a step is over when one of them
    has been stepped more often than any before.

    Args:
        tuning: whose values; kept alive.
        model: the model; its forward passes are watched if there is an interval.
        every: the interval; None: masks stay.
    """

    def __init__(self, tuning: Renewable, model: nn.Module, every: int | None) -> None:
        self._tuning, self._every = tuning, every
        self._forgotten: set[int] = set()
        """Ids of the values of which optimizers have nothing to remember: they have moved on."""
        self._renewing = False
        self._stepped: dict[int, int] = {}
        """Id of a parameter of the values -> how often it was stepped."""
        self.steps = 0
        """Steps taken so far."""
        self.renewals = 0
        """Masks made after the first."""
        self.renewed_before = 1
        """The step, counted from 1, that the last mask was made for."""
        # torch's list of hooks must keep no model alive.
        self._watcher = _Watcher(weakref.ref(self))
        watch(self._watcher)
        self._handles = [model.register_forward_pre_hook(self._watcher)] if every else []
        weakref.finalize(model, unwatch, self._watcher)

    @property
    def due(self) -> bool:
        """Whether the coming step begins with a new mask."""
        coming = self.steps + 1
        if self._every is None or self.renewed_before == coming:
            return False
        return coming % self._every == 0

    @property
    def state(self) -> list[int]:
        """Steps, renewals, and the step that the last mask was made for."""
        return [self.steps, self.renewals, self.renewed_before]

    @state.setter
    def state(self, numbers: Sequence[int]) -> None:
        self.steps, self.renewals, self.renewed_before = numbers
        self._stepped = {id(value): self.steps for value in self._tuning.parameters()}
        if self.renewals and self.renewed_before == self.steps + 1:
            self._forget()

    def _forget(self) -> None:
        self._forgotten = {id(value) for value in self._tuning.parameters()}

    def before_step(self, optimizer: Optimizer) -> None:
        """Make a mask that is still due, and reset the state of values that a new mask has moved.
        An optimizer is known only once it steps: one that goes on from a checkpoint has its state,
        but has not stepped yet.

        Args:
            optimizer: about to step.
        """
        if self.due and self._values_of(optimizer):
            self.renew()
        if not self._forgotten:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self._forgotten:
                    optimizer.state.pop(parameter, None)
                    self._forgotten.discard(id(parameter))

    def after_step(self, optimizer: Optimizer) -> None:
        """Count a step, if it was one of the values.

        Args:
            optimizer: that has stepped.
        """
        stepped = self._values_of(optimizer)
        if not stepped:
            return
        for key in stepped:
            self._stepped[key] = self._stepped.get(key, 0) + 1
        self.steps = max(self.steps, *(self._stepped[key] for key in stepped))
        self._tuning.write()

    def _values_of(self, optimizer: Optimizer) -> set[int]:
        """Ids of the values that an optimizer steps."""
        own = {id(value) for value in self._tuning.parameters()}
        groups = optimizer.param_groups
        return own & {id(parameter) for group in groups for parameter in group["params"]}

    def before_forward(self) -> None:
        """Make a mask that is due, if this pass computes gradients of the values: while weights are
        ranked, it does not."""
        if (
            self.due
            and not self._renewing
            and torch.is_grad_enabled()
            and any(value.requires_grad for value in self._tuning.parameters())
        ):
            self.renew()

    def renew(self) -> None:
        """Make a new mask now, and forget what optimizers know of the values."""
        self._renewing = True
        try:
            self._tuning.renew(self.renewals + 1)
            self.renewals, self.renewed_before = self.renewals + 1, self.steps + 1
        finally:
            self._renewing = False
        self._forget()

    def remove(self) -> None:
        """Stop watching."""
        unwatch(self._watcher)
        for handle in self._handles:
            handle.remove()


def _nobody() -> None:
    """What a copy of a model reports to: its entries train on without the tuning."""


class _Watcher:
    """Tells of every optimizer step and forward pass, as long as anybody wants to know."""

    runs_last: ClassVar[bool] = True

    def __init__(self, steps: Callable[[], StepsOfValues | None]) -> None:
        self._steps = steps

    def __reduce__(self) -> tuple[Any, ...]:
        # A model that is copied or pickled takes its hooks along.
        return _Watcher, (_nobody,)

    def __call__(self, module: nn.Module, args: Any) -> None:
        """The model computes."""
        if (steps := self._steps()) is not None:
            steps.before_forward()

    def on_begin(self, call: StepCall) -> None:
        """A new mask may have moved the values."""
        if (steps := self._steps()) is not None:
            steps.before_step(call.optimizer)

    def on_gradients(self, call: StepCall) -> None:
        """Nothing has changed."""

    def on_end(self, call: StepCall) -> None:
        """The values may have moved."""
        if (steps := self._steps()) is not None:
            steps.after_step(call.optimizer)
