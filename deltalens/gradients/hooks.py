"""Every optimizer step of this process, told to whoever watches: one pair of hooks for all.

torch's global hooks are the only ones that see optimizers which a trainer makes late. They live in
a dictionary that every step iterates over: while one thread steps, another may change it only where
a single hook is registered. So there is never more than one pair of ours, and what is known of a
step belongs to that call of that optimizer on that thread.
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
    around: tuple[StepCall, ...]
    """The calls that it runs inside of, on this thread; the outermost first."""
    watchers: tuple[StepWatcher, ...]
    has_closure: bool
    """Whether gradients are computed inside the step."""
    evaluations: int = 0
    """How often it has called its closure."""
    evaluating: bool = False
    """Whether it is calling it now."""
    held: dict[int, Any] = field(default_factory=dict)
    """What each watcher keeps of this call, by its id."""


class StepWatcher(Protocol):
    """Is told of every step of every optimizer."""

    late: ClassVar[bool]
    """Whether it looks at what the others have left after the step."""

    def begins(self, running: StepCall) -> None:
        """Nothing has moved; with a closure the gradients are yet to come."""

    def computed(self, running: StepCall) -> None:
        """The gradients are final: at once, or after each evaluation of the closure."""

    def ended(self, running: StepCall) -> None:
        """The optimizer has stepped."""


_lock = threading.RLock()
_watchers: tuple[StepWatcher, ...] = ()
"""Replaced, never changed: a step that has begun goes on with those that it began with."""
_handles: list[RemovableHandle] = []
_unfinished: weakref.WeakSet[StepCall] = weakref.WeakSet()
"""On all threads."""


class _Stack(threading.local):
    def __init__(self) -> None:
        self.running: list[StepCall] = []


_here = _Stack()


def watch(watcher: StepWatcher) -> None:
    """Tell a watcher of every step that begins from now on."""
    global _watchers
    with _lock:
        _watchers = tuple(sorted((*_watchers, watcher), key=lambda one: one.late))
        if not _handles:
            _handles.append(register_optimizer_step_pre_hook(_before))
            _handles.append(register_optimizer_step_post_hook(_after))


def unwatch(watcher: StepWatcher) -> None:
    """Tell it no more, but of the end of steps that have begun; the last takes the hooks along."""
    global _watchers
    with _lock:
        _watchers = tuple(one for one in _watchers if one is not watcher)
    _forget_broken(inside=0)
    _remove_hooks()


def _remove_hooks() -> None:
    """If nobody needs them, and no other thread can be iterating past them."""
    with _lock:
        alone = max(
            len(torch_optimizer._global_optimizer_pre_hooks),
            len(torch_optimizer._global_optimizer_post_hooks),
        )
        if _handles and not _watchers and not _unfinished and alone == 1:
            for handle in _handles:
                handle.remove()
            _handles.clear()


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
    around = tuple(_forget_broken(inside=1))
    place = _closure_in(args, kwargs)
    with _lock:
        if not _watchers:
            return None
        running = StepCall(optimizer, around, _watchers, place is not None)
        _unfinished.add(running)
    _here.running.append(running)
    try:
        for one in running.watchers:
            one.begins(running)
        if place is None:
            _tell_computed(running)
            return None
    except BaseException:
        _end(running)
        raise
    return _with_closure(running, place, args, kwargs)


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for running in reversed(_here.running):
        if running.optimizer is optimizer:
            break
    else:
        return
    _end(running)
    for one in running.watchers:
        one.ended(running)
    if not _watchers:
        _remove_hooks()


def _end(running: StepCall) -> None:
    """With it go those inside it that an exception has left unfinished."""
    stack = _here.running
    for one in stack[stack.index(running) :]:
        _unfinished.discard(one)
    del stack[stack.index(running) :]


def _tell_computed(running: StepCall) -> None:
    with torch.no_grad():
        for one in running.watchers:
            one.computed(running)


def _closure_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
    """Where a step's arguments have a closure: a place, or a name."""
    if callable(kwargs.get("closure")):
        return "closure"
    return next((place for place, given in enumerate(args) if place and callable(given)), None)


def _with_closure(
    running: StepCall, place: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The step's arguments with a closure that tells when the gradients are final."""
    closure: Callable[[], Any] = args[place] if isinstance(place, int) else kwargs[place]

    def evaluated() -> Any:
        running.evaluating = True
        try:
            loss = closure()
        finally:
            running.evaluating = False
        running.evaluations += 1
        _tell_computed(running)
        return loss

    if isinstance(place, int):
        return (*args[:place], evaluated, *args[place + 1 :]), kwargs
    return args, {**kwargs, place: evaluated}


_STEP_WRAPPER = Optimizer.profile_hook_step(lambda self: None).__code__
"""What torch puts around every optimizer's `step`, and calls the hooks from."""


def _forget_broken(inside: int) -> list[StepCall]:
    """Drop the calls that an exception has ended. They are read off the stack, which no exception
    leaves stale.

    Args:
        inside: 1 where a call is just beginning, and not among them yet.

    Returns:
        Those that go on; the outermost first.
    """
    stack = _here.running
    if not stack:
        return stack
    frame = inspect.currentframe()
    calling: list[Optimizer] = []
    while frame is not None:
        if frame.f_code is _STEP_WRAPPER:
            calling.append(frame.f_locals["args"][0])
        frame = frame.f_back
    outermost_first = reversed(calling[inside:])
    going_on = [
        one for one in stack if any(optimizer is one.optimizer for optimizer in outermost_first)
    ]
    for one in stack:
        if one not in going_on:
            _unfinished.discard(one)
    stack[:] = going_on
    return stack
