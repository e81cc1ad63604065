"""One pass over the gradients of every optimizer step, shared by all that read or mask them.

Gradients are seen right before each step, when they are final: accumulated, clipped, and unscaled
or about to be. In a step that computes its gradients itself (with a closure) they are seen right
after that. Readers (probes) run before writers (masks), and after the step the other way round, in
whatever order they were attached.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from deltalens.errors import DeltaLensError
from deltalens.gradients.hooks import StepCall, unwatch, watch
from deltalens.gradients.parameters import inner_model, named_parameters
from deltalens.gradients.steps import GradientStep, Step, gradients_of

if TYPE_CHECKING:
    from deltalens.gradients.subscriber import Subscriber

__all__ = ["ATTACHING", "GradientPass"]

ATTACHING = threading.RLock()
"""Guards attaching and detaching; never held while a subscriber works."""


@dataclass(eq=False)
class _Subscription:
    subscriber: Subscriber
    optimizers: tuple[Optimizer, ...] | None
    number: int = -1
    step: Step | None = None

    def wants(self, optimizer: Optimizer) -> bool:
        """Whether the subscriber watches this optimizer."""
        return self.optimizers is None or any(optimizer is chosen for chosen in self.optimizers)

    def number_in(self, step: Step) -> int:
        """The subscriber's number of the step; increments when a new step begins."""
        if self.step is not step:
            self.step, self.number = step, self.number + 1
        return self.number


@dataclass(eq=False)
class _Call:
    """What a model's pass stores for one call of an optimizer's step."""

    all_parameters: list[tuple[str, nn.Parameter]]
    """All parameters that the model has now."""
    parameters: list[tuple[str, nn.Parameter]]
    """Those that the call may move."""
    subscriptions: list[_Subscription]
    """Those that are notified of the call."""
    outer: dict[_Subscription, set[int]] = field(default_factory=dict)
    """Subscription -> ids of the parameters that an enclosing call moves and notifies it of."""
    notified: list[tuple[Subscriber, GradientStep, Any]] = field(default_factory=list)
    """Each notified subscriber, the step it saw, and what it returned."""

    def own_parameters(self, subscription: _Subscription) -> list[tuple[str, nn.Parameter]]:
        """The parameters that this call moves and no enclosing call does."""
        outer = self.outer.get(subscription, set())
        return [
            (name, parameter) for name, parameter in self.parameters if id(parameter) not in outer
        ]


class GradientPass:
    """All subscribers of one model; a watcher of every optimizer step (`hooks`).

    A *step* is what is done with the same gradients. Optimizers that step one after the other with
    no backward pass in between (Muon and AdamW) take one step together, and so do all that step
    inside one backward pass. If each has a backward pass of its own (a generator and its
    discriminator), or a parameter is stepped a second time, a new step begins.

    Steps are recognized by the identity of parameters, each time anew, because trainers make their
    optimizers late, wrap them, and unfreeze, add and replace parameters.

    Args:
        model: the innermost model.
    """

    runs_last: ClassVar[bool] = False
    _of: ClassVar[weakref.WeakKeyDictionary[nn.Module, GradientPass]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._step: Step | None = None
        self._warned: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.working = threading.RLock()
        """Lets one optimizer work at a time: several threads may step the same model."""

    @classmethod
    def of(cls, model: nn.Module) -> GradientPass:
        """Return the pass of a model, the same for all its wrappers; it is made on first use.

        Args:
            model: the model; wrapped or not.

        Returns:
            The model's pass.
        """
        model = inner_model(model)
        with ATTACHING:
            if model not in cls._of:
                cls._of[model] = cls(model)
            return cls._of[model]

    def attach(
        self, subscriber: Subscriber, optimizer: Optimizer | Sequence[Optimizer] | None = None
    ) -> None:
        """Notify a subscriber of every step from now on.

        Args:
            subscriber: the object to notify.
            optimizer: notify only of the steps of this optimizer, or of these.

        Raises:
            DeltaLensError: a given optimizer holds none of the model's parameters.
        """
        chosen = None if optimizer is None else _unwrapped(optimizer)
        model = self._model()
        if chosen is not None and model is not None:
            parameter_ids = {id(parameter) for parameter in model.parameters()}
            for one in chosen:
                if not any(id(p) in parameter_ids for p in _parameters_of(one)):
                    raise DeltaLensError(
                        f"{type(one).__name__} steps no parameter of {type(model).__name__}: pass "
                        "the optimizer made for this model, or omit optimizer to watch all"
                    )
        with ATTACHING:
            subscriptions = (*self._subscriptions, _Subscription(subscriber, chosen))
            if not self._subscriptions:
                watch(self)
            self._subscriptions = tuple(
                sorted(subscriptions, key=lambda one: one.subscriber.writes)
            )

    def detach(self, subscriber: Subscriber) -> None:
        """Stop notifying a subscriber.

        Args:
            subscriber: an object passed to `attach` before.
        """
        with ATTACHING:
            remaining = tuple(
                one for one in self._subscriptions if one.subscriber is not subscriber
            )
            if self._subscriptions and not remaining:
                self._step = None
                unwatch(self)
            self._subscriptions = remaining

    def on_begin(self, step_call: StepCall) -> None:
        """See `hooks.StepWatcher`."""
        model, optimizer = self._model(), step_call.optimizer
        subscriptions = [one for one in self._subscriptions if one.wants(optimizer)]
        if model is None or not subscriptions:
            return
        all_parameters = list(named_parameters(model))
        names = {id(parameter): name for name, parameter in all_parameters}
        moved = [(names[id(p)], p) for p in _parameters_of(optimizer) if id(p) in names]
        if not moved:
            return
        call = step_call.state[id(self)] = _Call(all_parameters, moved, subscriptions)
        self._assign_to_outer(step_call, call)
        if step_call.has_closure and call.subscriptions:
            self._open(step_call, call)

    def _assign_to_outer(self, step_call: StepCall, call: _Call) -> None:
        """Leave to an enclosing step what it moves itself.

        A step inside a step belongs to a parent class, or to an optimizer that another one wraps.
        While an enclosing step evaluates its closure it moves nothing.
        """
        for enclosing in step_call.enclosing:
            outer: _Call | None = enclosing.state.get(id(self))
            if outer is not None and not enclosing.evaluating:
                moved = {id(parameter) for _, parameter in outer.parameters}
                for subscription in outer.subscriptions:
                    call.outer.setdefault(subscription, set()).update(moved)
        if call.outer:
            call.subscriptions = [one for one in call.subscriptions if call.own_parameters(one)]

    def _open(self, step_call: StepCall, call: _Call) -> None:
        if isinstance(step_call.optimizer, torch.optim.LBFGS):
            self._refuse_closure(step_call, call)
        with torch.no_grad():
            for subscription in call.subscriptions:
                subscription.subscriber.open_step(call.own_parameters(subscription))

    def _refuse_closure(self, step_call: StepCall, call: _Call) -> None:
        """Refuse several evaluations in a step: none of their gradients is the one that is
        applied."""
        optimizer = step_call.optimizer
        name = type(optimizer).__name__
        for subscription in call.subscriptions:
            subscriber = subscription.subscriber
            if subscriber.writes:
                subscriber.notified = True
                raise DeltaLensError(
                    f"{type(subscriber).__name__}: {name} evaluates its closure several "
                    "times in a step, so no single gradient is the one that it applies: use an "
                    "optimizer that evaluates its closure once"
                )
        if optimizer not in self._warned:
            self._warned.add(optimizer)
            warnings.warn(
                f"{name} evaluates its closure several times in a step: only the gradient of the "
                "first evaluation is logged",
                stacklevel=5,
            )

    def on_gradients(self, step_call: StepCall) -> None:
        """See `hooks.StepWatcher`.

        Raises:
            DeltaLensError: a mask is attached, and the step evaluates its closure several times.
        """
        call: _Call | None = step_call.state.get(id(self))
        if call is None or not call.subscriptions:
            return
        if step_call.evaluations > 1:
            self._refuse_closure(step_call, call)
            return
        with self.working:
            self._notify(step_call, call)

    def _notify(self, step_call: StepCall, call: _Call) -> None:
        optimizer = step_call.optimizer
        gradients = gradients_of(call.parameters, optimizer)
        if not gradients or _skipped(optimizer):
            return
        in_backward = torch._C._current_graph_task_id() != -1
        parameters = [one.parameter for one in gradients]
        step = self._step
        if step is None or not step.continues_with(parameters, in_backward):
            others = (one for _, one in _other_parameters(call.all_parameters, parameters))
            other_gradients = {
                id(one): weakref.ref(one.grad) for one in others if one.grad is not None
            }
            step = self._step = Step(in_backward, other_gradients)
        left_to_others: tuple[str, ...] = ()
        if in_backward:
            remaining = _other_parameters(call.all_parameters, (one for _, one in call.parameters))
            left_to_others = tuple(name for name, one in remaining if one.requires_grad)
        template = GradientStep(
            optimizer, 0, gradients, step, step.parts, left_to_others, step_call.has_closure
        )
        step.parts += 1
        step.stepped.update(map(id, parameters))
        for subscription in call.subscriptions:
            subscriber = subscription.subscriber
            own_view = replace(template, number=subscription.number_in(step))
            if outer := call.outer.get(subscription):
                own_view.gradients = [g for g in gradients if id(g.parameter) not in outer]
            call.notified.append((subscriber, own_view, subscriber.notify(own_view)))
            if subscriber.writes:
                own_view.counts.clear()
        # They are not ranked again, and on an accelerator would hold 256 KiB per tensor.
        template.counts.clear()

    def on_end(self, step_call: StepCall) -> None:
        """See `hooks.StepWatcher`. Masks that restore weights run before probes that look at them.

        Raises:
            DeltaLensError: a mask is attached, and the step never evaluated its closure.
        """
        call: _Call | None = step_call.state.pop(id(self), None)
        if call is None:
            return
        if step_call.has_closure and not step_call.evaluations:
            self._refuse_unseen(step_call, call)
        with self.working:
            for subscriber, step, state in sorted(call.notified, key=lambda one: not one[0].writes):
                subscriber.after_step(step, state)

    def _refuse_unseen(self, step_call: StepCall, call: _Call) -> None:
        if all(parameter.grad is None for _, parameter in call.parameters):
            return
        for subscription in call.subscriptions:
            subscriber = subscription.subscriber
            if subscriber.writes:
                subscriber.notified = True
                raise DeltaLensError(
                    f"{type(step_call.optimizer).__name__} stepped without evaluating the closure "
                    f"passed to it, so {type(subscriber).__name__} saw no gradient: "
                    "call backward() first, then step() without a closure"
                )


def _parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _other_parameters(
    all_parameters: Iterable[tuple[str, nn.Parameter]], excluded: Iterable[nn.Parameter]
) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters but the excluded ones."""
    ids = {id(parameter) for parameter in excluded}
    return ((name, parameter) for name, parameter in all_parameters if id(parameter) not in ids)


def _unwrapped(optimizer: Any) -> tuple[Optimizer, ...]:
    """Look inside accelerate's wrappers: only the optimizer inside has hooks."""
    unwrapped = []
    for one in [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer):
        while isinstance(inner := getattr(one, "optimizer", None), Optimizer):
            one = inner
        unwrapped.append(one)
    return tuple(unwrapped)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer will find infinities and skip the step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return isinstance(found_inf, Tensor) and bool(found_inf.item())
