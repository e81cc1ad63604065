"""One pass over the gradients of every optimizer step, shared by all that read or mask them.

A hook runs before each step of each optimizer that steps parameters of a model. The gradient is
then final: accumulated, clipped, and unscaled or about to be. Readers (probes) run before writers
(masks), whatever the order in which they were attached.
"""

from __future__ import annotations

import abc
import inspect
import re
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from deltalens.errors import DeltaLensError, several
from deltalens.numerics.magnitudes import Scan, scan
from deltalens.numerics.scratch import Scratch

__all__ = [
    "Gradient",
    "GradientPass",
    "GradientStep",
    "Subscriber",
    "chosen_names",
    "local_part",
    "parameter_names",
]

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")


@dataclass(frozen=True)
class Gradient:
    """The gradient of one parameter in one optimizer step."""

    name: str
    """The parameter's name, without the prefixes of wrappers."""
    parameter: nn.Parameter
    local: Tensor
    """This process's part of the gradient, 1-D; may be empty. A view wherever that can be."""
    entries: int
    """Of the whole tensor, on all processes."""
    scale: Tensor | None
    """What the gradient still has to be divided by (a loss scale); None: nothing."""
    groups: tuple[Any, ...] = ()
    """Process groups over which the tensor is sharded."""

    def write_back(self) -> None:
        """Bring what was changed in `local` into the parameter's gradient, where it is no view."""
        grad = self.parameter.grad
        assert grad is not None
        target = local_part(grad)
        if target.numel() and target.data_ptr() != self.local.data_ptr():
            target.copy_(self.local.view(target.shape))


@dataclass
class GradientStep:
    """One step of one optimizer, as its subscribers see it."""

    optimizer: Optimizer
    number: int
    """Steps that this optimizer took since the subscriber was attached; skipped ones do not
    count."""
    gradients: list[Gradient] = field(default_factory=list)
    _scans: dict[str, Scan] = field(default_factory=dict)
    """Shared by all subscribers, until one has written."""

    def scan(self, gradient: Gradient, scratch: Scratch) -> Scan:
        """The histogram of a gradient on the CPU: made once for all, until a mask changes it."""
        found = self._scans.get(gradient.name)
        if found is None:
            found = scan(gradient.local, gradient.scale, scratch)
            self._scans[gradient.name] = found
        return found

    def forget_scans(self) -> None:
        """The gradients are no longer what was scanned."""
        self._scans.clear()


class Subscriber(abc.ABC):
    """Something that is told of a model's optimizer steps while it is attached; a context manager.

    Args:
        model: whose steps.
        optimizer: only steps of this one, or these.
    """

    writes: ClassVar[bool] = False
    """Whether it changes gradients; then it comes after all that only read."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None
    ) -> None:
        self.model, self._optimizer = model, optimizer
        self._attached = self._told = False
        self.steps = 0
        """Steps taken into account."""
        self.seconds = 0.0
        """Time spent in the hooks."""

    @abc.abstractmethod
    def before_step(self, step: GradientStep) -> None:
        """The gradients are final; the parameters are what they were."""

    @abc.abstractmethod
    def after_step(self, step: GradientStep) -> None:
        """The optimizer has stepped."""

    def attach(self) -> Self:
        """Begin.

        Raises:
            DeltaLensError: attached already, a given optimizer does not hold any of the model's
                parameters, or the model is DeepSpeed's.
        """
        if self._attached:
            raise DeltaLensError(f"this {type(self).__name__} is attached already; detach() first")
        _refuse_deepspeed(self.model)
        GradientPass.of(self.model).attach(self, self._optimizer)
        self._attached, self._told = True, False
        return self

    def tell(self, step: GradientStep) -> None:
        """A step begins."""
        self._told = True
        self.before_step(step)

    def detach(self) -> None:
        """Stop, and remove the hooks."""
        if not self._attached:
            return
        GradientPass.of(self.model).detach(self)
        self._attached = False
        if not self._told:
            warnings.warn(
                f"{type(self).__name__} saw no optimizer step of this model: is it the model that "
                "was trained, and did its optimizer step inside the context?",
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()


@dataclass
class _Subscription:
    subscriber: Subscriber
    optimizers: tuple[Optimizer, ...] | None
    taken: weakref.WeakKeyDictionary[Optimizer, int] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def next_step(self, of: GradientStep) -> GradientStep:
        """The same step with this subscriber's own number, which counts on."""
        number = self.taken.get(of.optimizer, 0)
        self.taken[of.optimizer] = number + 1
        return replace(of, number=number)


class GradientPass:
    """All subscribers of one model, behind one pair of hooks.

    The hooks are torch's global ones, filtered by the parameters' identity: trainers make their
    optimizers late, and wrap them.
    """

    _of: ClassVar[weakref.WeakKeyDictionary[nn.Module, GradientPass]] = weakref.WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._subscriptions: list[_Subscription] = []
        self._hooks: list[RemovableHandle] = []
        self._warned: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._current: list[tuple[Subscriber, GradientStep]] = []

    @classmethod
    def of(cls, model: nn.Module) -> GradientPass:
        """The model's pass, the same for all its wrappers; made when there is none."""
        model = _inner(model)
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
                if not any(id(p) in own for group in one.param_groups for p in group["params"]):
                    raise DeltaLensError(
                        f"{type(one).__name__} steps no parameter of {type(model).__name__}: give "
                        "the optimizer made for this model, or none to take all"
                    )
        self._subscriptions.append(_Subscription(subscriber, given))
        self._subscriptions.sort(key=lambda one: one.subscriber.writes)
        if not self._hooks:
            self._hooks = [
                register_optimizer_step_pre_hook(self._before),
                register_optimizer_step_post_hook(self._after),
            ]

    def detach(self, subscriber: Subscriber) -> None:
        """Tell it no more; the last one takes the hooks with it."""
        self._subscriptions = [s for s in self._subscriptions if s.subscriber is not subscriber]
        if not self._subscriptions:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        model = self._model()
        if model is None or _is_nested(optimizer):
            return
        self._current = []
        if any(callable(given) for given in (*args[1:], *kwargs.values())):
            self._warn_of_closure(optimizer)
            return
        if not (told := self._told(optimizer)):
            return
        gradients = _gradients(model, optimizer)
        if not gradients or _skipped(optimizer):
            return
        step = GradientStep(optimizer, 0, gradients)
        for one in told:
            own = one.next_step(step)
            self._current.append((one.subscriber, own))
            one.subscriber.tell(own)
            if one.subscriber.writes:
                own.forget_scans()

    def _warn_of_closure(self, optimizer: Optimizer) -> None:
        if optimizer not in self._warned:
            self._warned.add(optimizer)
            warnings.warn(
                f"{type(optimizer).__name__}.step(closure) computes gradients inside the step, "
                "where they cannot be watched: call backward() first, then step()",
                stacklevel=4,
            )

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._current and self._current[0][1].optimizer is optimizer:
            current, self._current = self._current, []
            for subscriber, step in current:
                subscriber.after_step(step)

    def _told(self, optimizer: Optimizer) -> list[_Subscription]:
        return [
            one
            for one in self._subscriptions
            if one.optimizers is None or any(optimizer is given for given in one.optimizers)
        ]


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


_STEP_WRAPPER = Optimizer.profile_hook_step(lambda self: None).__code__
"""What torch puts around every optimizer's `step`, and calls the hooks from."""


def _is_nested(optimizer: Optimizer) -> bool:
    """Whether this is a step inside a step over the same parameters: of a parent class, or of an
    optimizer that another one wraps. Read off the stack, which no exception leaves stale."""
    frame = inspect.currentframe()
    within: list[Optimizer] = []
    while frame is not None:
        if frame.f_code is _STEP_WRAPPER:
            within.append(frame.f_locals["args"][0])
        frame = frame.f_back
    if len(within) < 2:
        return False
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(
        outer is optimizer or any(id(p) in own for g in outer.param_groups for p in g["params"])
        for outer in within[1:]
    )


def _inner(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DDP's wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer will find infinities and leave everything as it is."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


def _gradients(model: nn.Module, optimizer: Optimizer) -> list[Gradient]:
    names = {id(parameter): name for name, parameter in parameter_names(model)}
    scale = getattr(optimizer, "grad_scale", None)
    return [
        _gradient(names[id(parameter)], parameter, parameter.grad, scale)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names and parameter.grad is not None
    ]


def _gradient(name: str, parameter: nn.Parameter, grad: Tensor, scale: Tensor | None) -> Gradient:
    grad = grad.detach().to_dense() if grad.is_sparse else grad.detach()
    if not isinstance(grad, DTensor):
        return Gradient(name, parameter, grad.reshape(-1).contiguous(), grad.numel(), scale)
    groups = tuple(
        grad.device_mesh.get_group(dim)
        for dim, placement in enumerate(grad.placements)
        if isinstance(placement, Shard)
    )
    local = grad.to_local().reshape(-1).contiguous()
    return Gradient(name, parameter, local, grad.numel(), scale, groups)


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a parameter or gradient, detached."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parameter_names(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """A model's trainable parameters, tied ones once, named as without any wrapper."""
    prefix = "module." if isinstance(model, nn.parallel.DistributedDataParallel) else ""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield _WRAPPERS.sub("", name.removeprefix(prefix)).removeprefix("."), parameter


def chosen_names(names: Sequence[str], include: str | None, exclude: str | None) -> list[str]:
    """The names that the patterns leave.

    Raises:
        DeltaLensError: a pattern that is none, or nothing is left (the nearest names are shown).
    """
    try:
        want, refuse = (re.compile(p) if p is not None else None for p in (include, exclude))
    except re.error as error:
        raise DeltaLensError(f"include/exclude: no regular expression: {error}") from error
    kept = [
        name
        for name in names
        if (want is None or want.search(name)) and not (refuse and refuse.search(name))
    ]
    if not kept:
        import difflib

        asked = include if include is not None else exclude
        near = difflib.get_close_matches(str(asked), names, n=5, cutoff=0.0)
        raise DeltaLensError(
            several(f"include={include!r}, exclude={exclude!r} leave no parameter; nearest:", near)
        )
    return kept
