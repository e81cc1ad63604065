"""One pass over the gradients of every optimizer step, shared by all that read or mask them.

The gradient is seen right before each step: then it is final, accumulated, clipped, and unscaled or
about to be; where a step computes its gradients itself (a closure), right after that. Readers
(probes) are told before writers (masks), and after the step the other way round, whatever the order
in which they were attached.
"""

from __future__ import annotations

import abc
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from deltalens.errors import DeltaLensError
from deltalens.gradients.hooks import StepCall, unwatch, watch
from deltalens.gradients.parameters import inner_model, named_parameters
from deltalens.gradients.steps import GradientStep, Step, gradients_of

__all__ = ["GradientPass", "Subscriber"]

_lock = threading.RLock()
"""Of attaching and detaching; never held while a subscriber works."""


class Subscriber(abc.ABC):
    """Something that is told of a model's optimizer steps while it is attached; a context manager.

    Args:
        model: whose steps.
        optimizer: only steps of this one, or these.
    """

    writes: ClassVar[bool] = False
    """Whether it changes gradients; then it comes after all that only read, and first after the
    step, where it may change parameters."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None
    ) -> None:
        self.model, self._optimizer = model, optimizer
        self._attached = False
        self.told = False
        """Whether it has learned of any step since it was attached."""
        self._counted: Step | None = None
        self.steps = 0
        """Steps taken into account."""
        self.seconds = 0.0
        """Time spent in the hooks."""

    def open_step(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """A step begins that computes its gradients itself (a closure): the parameters that it may
        move, before it does."""
        return

    @abc.abstractmethod
    def before_step(self, step: GradientStep) -> Any:
        """The gradients are final; the parameters are what they were.

        Returns:
            What `after_step` is to be given.
        """

    @abc.abstractmethod
    def after_step(self, step: GradientStep, held: Any) -> None:
        """The optimizer has stepped."""

    def attach(self) -> Self:
        """Begin.

        Raises:
            DeltaLensError: attached already, a given optimizer does not hold any of the model's
                parameters, or the model is DeepSpeed's.
        """
        _refuse_deepspeed(self.model)
        with _lock:
            if self._attached:
                raise DeltaLensError(
                    f"this {type(self).__name__} is attached already; detach() first"
                )
            GradientPass.of(self.model).attach(self, self._optimizer)
            self._attached, self.told = True, False
        return self

    def tell(self, step: GradientStep) -> Any:
        """A step's gradients are final."""
        self.told = True
        return self.before_step(step)

    def count(self, step: GradientStep) -> None:
        """Take a step into account: once, however many optimizers take part in it."""
        if self._counted is None or self._counted is not step.whole:
            self._counted = step.whole
            self.steps += 1

    def detach(self) -> None:
        """Stop, and remove the hooks. A step that has begun is still brought to its end."""
        with _lock:
            if not self._attached:
                return
            self._attached = False
        own = GradientPass.of(self.model)
        own.detach(self)
        if not self.told:
            warnings.warn(
                f"{type(self).__name__} saw no optimizer step of this model: is it the model that "
                "was trained, and did its optimizer step inside the context?",
                stacklevel=2,
            )
        with own.working:
            self.close()

    def close(self) -> None:
        """It was attached, and is no more; none of its steps is at work."""
        return

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()


@dataclass(eq=False)
class _Subscription:
    subscriber: Subscriber
    optimizers: tuple[Optimizer, ...] | None
    number: int = -1
    step: Step | None = None

    def takes(self, optimizer: Optimizer) -> bool:
        """Whether it wants to know of this optimizer's steps."""
        return self.optimizers is None or any(optimizer is given for given in self.optimizers)

    def number_in(self, step: Step) -> int:
        """Its own number of the step; it counts on."""
        if self.step is not step:
            self.step, self.number = step, self.number + 1
        return self.number


@dataclass(eq=False)
class _Call:
    """What a model's pass keeps of one call of an optimizer's step."""

    every: list[tuple[str, nn.Parameter]]
    """All parameters that the model has now."""
    parameters: list[tuple[str, nn.Parameter]]
    """Those that it may move."""
    told: list[_Subscription]
    outer: dict[_Subscription, set[int]] = field(default_factory=dict)
    """Parameters that an optimizer around this one moves, of which the same was told."""
    began: list[tuple[Subscriber, GradientStep, Any]] = field(default_factory=list)
    """What each was told, and what it wants back."""

    def own(self, told: _Subscription) -> list[tuple[str, nn.Parameter]]:
        """What it may move and no call around it does."""
        outer = self.outer.get(told, set())
        return [(name, one) for name, one in self.parameters if id(one) not in outer]


class GradientPass:
    """All subscribers of one model: a watcher of every step (`hooks`).

    A *step* is what is done with the same gradients: optimizers that step one after the other, with
    no backward pass in between (Muon and AdamW), take one step together, and so do all that step
    inside one backward pass. Where each has a backward pass of its own (a generator and its
    discriminator), or a parameter comes a second time, another step begins.

    Steps are recognized by the parameters' identity, each time anew: trainers make their optimizers
    late and wrap them, and unfreeze, add and replace parameters.
    """

    late: ClassVar[bool] = False
    _of: ClassVar[weakref.WeakKeyDictionary[nn.Module, GradientPass]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._step: Step | None = None
        self._warned: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.working = threading.RLock()
        """One optimizer at a time: they may step the same model on several threads."""

    @classmethod
    def of(cls, model: nn.Module) -> GradientPass:
        """The model's pass, the same for all its wrappers; made when there is none."""
        model = inner_model(model)
        with _lock:
            if model not in cls._of:
                cls._of[model] = cls(model)
            return cls._of[model]

    def attach(
        self, subscriber: Subscriber, optimizer: Optimizer | Sequence[Optimizer] | None = None
    ) -> None:
        """Tell a subscriber of every step from now on.

        Args:
            subscriber: who is told.
            optimizer: only steps of this one, or these.

        Raises:
            DeltaLensError: a given optimizer does not hold any of the model's parameters.
        """
        given = None if optimizer is None else _unwrapped(optimizer)
        model = self._model()
        if given is not None and model is not None:
            own = {id(parameter) for parameter in model.parameters()}
            for one in given:
                if not any(id(p) in own for p in _parameters_of(one)):
                    raise DeltaLensError(
                        f"{type(one).__name__} steps no parameter of {type(model).__name__}: give "
                        "the optimizer made for this model, or none to take all"
                    )
        with _lock:
            every = (*self._subscriptions, _Subscription(subscriber, given))
            if not self._subscriptions:
                watch(self)
            self._subscriptions = tuple(sorted(every, key=lambda one: one.subscriber.writes))

    def detach(self, subscriber: Subscriber) -> None:
        """Tell it no more."""
        with _lock:
            left = tuple(s for s in self._subscriptions if s.subscriber is not subscriber)
            if self._subscriptions and not left:
                self._step = None
                unwatch(self)
            self._subscriptions = left

    def begins(self, running: StepCall) -> None:
        """See `hooks.StepWatcher`."""
        model, optimizer = self._model(), running.optimizer
        told = [one for one in self._subscriptions if one.takes(optimizer)]
        if model is None or not told:
            return
        every = list(named_parameters(model))
        names = {id(parameter): name for name, parameter in every}
        held = [(names[id(p)], p) for p in _parameters_of(optimizer) if id(p) in names]
        if not held:
            return
        call = running.held[id(self)] = _Call(every, held, told)
        self._leave_to_outer(running, call)
        if running.has_closure and call.told:
            self._open(running, call)

    def _leave_to_outer(self, running: StepCall, call: _Call) -> None:
        """A step inside a step, of a parent class or of an optimizer that another one wraps: what
        the outer one moves is the outer one's. (Inside its closure it does not move anything.)"""
        for one in running.around:
            outer: _Call | None = one.held.get(id(self))
            if outer is not None and not one.evaluating:
                for told in outer.told:
                    call.outer.setdefault(told, set()).update(id(p) for _, p in outer.parameters)
        if call.outer:
            call.told = [one for one in call.told if call.own(one)]

    def _open(self, running: StepCall, call: _Call) -> None:
        if isinstance(running.optimizer, torch.optim.LBFGS):
            self._refuse_closure(running, call)
        with torch.no_grad():
            for one in call.told:
                one.subscriber.open_step(call.own(one))

    def _refuse_closure(self, running: StepCall, call: _Call) -> None:
        """Several evaluations in a step: no gradient of them is the one that is applied."""
        optimizer = running.optimizer
        name = type(optimizer).__name__
        for one in call.told:
            if one.subscriber.writes:
                one.subscriber.told = True
                raise DeltaLensError(
                    f"{type(one.subscriber).__name__}: {name} evaluates its closure several times "
                    "in a step, so that no single gradient is the one it applies: use an optimizer "
                    "that evaluates it once"
                )
        if optimizer not in self._warned:
            self._warned.add(optimizer)
            warnings.warn(
                f"{name} evaluates its closure several times in a step: what is logged is the "
                "gradient of the first",
                stacklevel=5,
            )

    def computed(self, running: StepCall) -> None:
        """See `hooks.StepWatcher`."""
        call: _Call | None = running.held.get(id(self))
        if call is None or not call.told:
            return
        if running.evaluations > 1:
            self._refuse_closure(running, call)
            return
        with self.working:
            self._tell(running, call)

    def _tell(self, running: StepCall, call: _Call) -> None:
        optimizer = running.optimizer
        gradients = gradients_of(call.parameters, optimizer)
        if not gradients or _skipped(optimizer):
            return
        in_backward = torch._C._current_graph_task_id() != -1
        own = [one.parameter for one in gradients]
        step = self._step
        if step is None or not step.goes_on(own, in_backward):
            others = (one for _, one in _beside(call.every, own))
            there = {id(one): weakref.ref(one.grad) for one in others if one.grad is not None}
            step = self._step = Step(in_backward, there)
        elsewhere: tuple[str, ...] = ()
        if in_backward:
            left = _beside(call.every, (one for _, one in call.parameters))
            elsewhere = tuple(name for name, one in left if one.requires_grad)
        shown = GradientStep(
            optimizer, 0, gradients, step, step.parts, elsewhere, running.has_closure
        )
        step.parts += 1
        step.moved.update(map(id, own))
        for one in call.told:
            mine = replace(shown, number=one.number_in(step))
            if outer := call.outer.get(one):
                mine.gradients = [g for g in gradients if id(g.parameter) not in outer]
            call.began.append((one.subscriber, mine, one.subscriber.tell(mine)))
            if one.subscriber.writes:
                mine.counts.clear()
        # Nobody ranks them again; on an accelerator they would hold a quarter of a MB a tensor.
        shown.counts.clear()

    def ended(self, running: StepCall) -> None:
        """See `hooks.StepWatcher`. Who puts weights back comes before who looks at them."""
        call: _Call | None = running.held.pop(id(self), None)
        if call is None:
            return
        if running.has_closure and not running.evaluations:
            self._refuse_unseen(running, call)
        with self.working:
            for subscriber, step, held in sorted(call.began, key=lambda one: not one[0].writes):
                subscriber.after_step(step, held)

    def _refuse_unseen(self, running: StepCall, call: _Call) -> None:
        for one in call.told:
            if one.subscriber.writes and any(p.grad is not None for _, p in call.parameters):
                one.subscriber.told = True
                raise DeltaLensError(
                    f"{type(running.optimizer).__name__} has stepped without evaluating the "
                    f"closure that it was given, so {type(one.subscriber).__name__} saw no "
                    "gradient: call backward() first, then step()"
                )


def _parameters_of(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _beside(
    every: Iterable[tuple[str, nn.Parameter]], some: Iterable[nn.Parameter]
) -> Iterator[tuple[str, nn.Parameter]]:
    """All but some."""
    ids = {id(parameter) for parameter in some}
    return ((name, one) for name, one in every if id(one) not in ids)


def _refuse_deepspeed(model: nn.Module) -> None:
    """ZeRO keeps gradients in flat buffers of its own, where no parameter's can be seen."""
    wrapped = type(model).__module__.partition(".")[0] == "deepspeed"
    if wrapped or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise DeltaLensError(
            "DeepSpeed ZeRO hides the gradients of single parameters; shard with FSDP2 instead "
            "(docs/scaling.md)"
        )


def _unwrapped(optimizer: Any) -> tuple[Optimizer, ...]:
    """accelerate's wrapper steps the optimizer inside it, which alone has hooks."""
    found = []
    for one in [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer):
        while isinstance(inner := getattr(one, "optimizer", None), Optimizer):
            one = inner
        found.append(one)
    return tuple(found)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer will find infinities and leave everything as it is."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())
