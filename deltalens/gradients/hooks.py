"""Report every optimizer step of this process to its watchers, through a single pair of hooks.

torch's global hooks are the only ones that see optimizers which a trainer makes late. They live in
a dictionary that every step iterates over: while one thread steps, another may change it only if a
single hook is registered. So there is never more than one pair of ours, and the state of a step
belongs to one call of one optimizer on one thread.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

__all__ = ["StepCall", "StepWatcher", "unwatch", "watch"]


@dataclass(eq=False)
class StepCall:
    """One call of one optimizer's `step`, from its beginning to its end."""

    optimizer: Optimizer
    enclosing: tuple[StepCall, ...]
    """The calls on this thread that this call runs inside of, outermost first."""
    watchers: tuple[StepWatcher, ...]
    has_closure: bool
    """Whether gradients are computed inside the step."""
    evaluations: int = 0
    """How many times the step has evaluated its closure."""
    evaluating: bool = False
    """Whether the step is evaluating its closure now."""
    state: dict[int, Any] = field(default_factory=dict)
    """What each watcher stores for this call, by the watcher's id."""


class StepWatcher(Protocol):
    """An object that is notified of every step of every optimizer."""

    runs_last: ClassVar[bool]
    """Whether the watcher looks at what the other watchers leave after a step."""

    def on_begin(self, call: StepCall) -> None:
        """Called when a step begins: no parameter has moved.

        Args:
            call: the step; with a closure, its gradients do not exist yet.
        """

    def on_gradients(self, call: StepCall) -> None:
        """Called when the gradients are final: at once, or after each evaluation of the closure.

        Args:
            call: the step.
        """

    def on_end(self, call: StepCall) -> None:
        """Called when the optimizer has stepped.

        Args:
            call: the step.
        """


_lock = threading.RLock()
_watchers: tuple[StepWatcher, ...] = ()
"""Replaced, never changed in place: a step that has begun keeps the watchers it began with."""
_handles: list[RemovableHandle] = []
_unfinished: weakref.WeakSet[StepCall] = weakref.WeakSet()
"""The calls in progress on all threads."""


class _ThreadCalls(threading.local):
    def __init__(self) -> None:
        self.calls: list[StepCall] = []


_local = _ThreadCalls()


def watch(watcher: StepWatcher) -> None:
    """Notify a watcher of every step that begins from now on.

    Args:
        watcher: the object to notify.
    """
    global _watchers
    with _lock:
        _watchers = tuple(sorted((*_watchers, watcher), key=lambda item: item.runs_last))
        if not _handles:
            _handles.append(register_optimizer_step_pre_hook(_before))
            _handles.append(register_optimizer_step_post_hook(_after))


def unwatch(watcher: StepWatcher) -> None:
    """Stop notifying a watcher, except of the end of steps that have begun.

    The hooks are removed with the last watcher.

    Args:
        watcher: an object passed to `watch` before.
    """
    global _watchers
    with _lock:
        _watchers = tuple(other for other in _watchers if other is not watcher)
    _drop_interrupted(not_listed=0)
    _remove_hooks()


def _remove_hooks() -> None:
    """Remove the hooks if they are unused and no other thread can be iterating over them."""
    with _lock:
        most_hooks = max(
            len(torch_optimizer._global_optimizer_pre_hooks),
            len(torch_optimizer._global_optimizer_post_hooks),
        )
        if _handles and not _watchers and not _unfinished and most_hooks == 1:
            for handle in _handles:
                handle.remove()
            _handles.clear()


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    enclosing = tuple(_drop_interrupted(not_listed=1))
    closure_at = _find_closure(args, kwargs)
    with _lock:
        if not _watchers:
            return None
        call = StepCall(optimizer, enclosing, _watchers, closure_at is not None)
        _unfinished.add(call)
    _local.calls.append(call)
    try:
        for watcher in call.watchers:
            watcher.on_begin(call)
        if closure_at is None:
            _notify_gradients(call)
            return None
    except BaseException:
        _forget(call)
        raise
    return _wrap_closure(call, closure_at, args, kwargs)


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for call in reversed(_local.calls):
        if call.optimizer is optimizer:
            break
    else:
        return
    _forget(call)
    for watcher in call.watchers:
        watcher.on_end(call)
    if not _watchers:
        _remove_hooks()


def _forget(call: StepCall) -> None:
    """Drop a call, and the calls inside it that an exception has left unfinished."""
    stack = _local.calls
    for inner in stack[stack.index(call) :]:
        _unfinished.discard(inner)
    del stack[stack.index(call) :]


def _notify_gradients(call: StepCall) -> None:
    with torch.no_grad():
        for watcher in call.watchers:
            watcher.on_gradients(call)


def _find_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
    """The position or name of the closure among a step's arguments; None if there is none."""
    if callable(kwargs.get("closure")):
        return "closure"
    return next((index for index, value in enumerate(args) if index and callable(value)), None)


def _wrap_closure(
    call: StepCall, closure_at: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The step's arguments, with a closure that reports when the gradients are final."""
    closure: Callable[[], Any] = (
        args[closure_at] if isinstance(closure_at, int) else kwargs[closure_at]
    )

    def evaluated() -> Any:
        call.evaluating = True
        try:
            loss = closure()
        finally:
            call.evaluating = False
        call.evaluations += 1
        _notify_gradients(call)
        return loss

    if isinstance(closure_at, int):
        return (*args[:closure_at], evaluated, *args[closure_at + 1 :]), kwargs
    return args, {**kwargs, closure_at: evaluated}


_STEP_WRAPPER = Optimizer.profile_hook_step(lambda self: None).__code__
"""The code that torch wraps around every optimizer's `step`, and that calls the hooks."""


def _drop_interrupted(not_listed: int) -> list[StepCall]:
    """Drop the calls that an exception has ended, and return those in progress, outermost first.

    They are read off the interpreter's stack, which an exception never leaves stale.

    Args:
        not_listed: 1 while a call is beginning that is on the stack but not recorded yet; else 0.
    """
    stack = _local.calls
    if not stack:
        return stack
    frame = inspect.currentframe()
    stepping: list[Optimizer] = []
    while frame is not None:
        if frame.f_code is _STEP_WRAPPER:
            stepping.append(frame.f_locals["args"][0])
        frame = frame.f_back
    outermost_first = reversed(stepping[not_listed:])
    ongoing = [
        call for call in stack if any(optimizer is call.optimizer for optimizer in outermost_first)
    ]
    for call in stack:
        if call not in ongoing:
            _unfinished.discard(call)
    stack[:] = ongoing
    return stack
