"""Functions that are called one after the other, and how what becomes of them is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalens.recipes import PlannedStep

__all__ = ["Begun", "DemoWatch", "Outcome", "ReproduceWatch", "Step"]


@dataclass(frozen=True)
class Step:
    """A function with its arguments."""

    question: str
    """That it answers, in a line."""
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    pictures: Callable[[], list[Path]] = field(default=lambda: [])
    """Draws what takes several studies."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a step or figure."""

    name: str
    state: str
    """`finished`, `failed` or `not run`."""
    reason: str = ""
    """Why, if it is not finished."""
    seconds: float = 0.0
    before: bool = False
    """Whether it was finished before this call."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Where a sequence of steps stands when one of them begins."""

    step: PlannedStep
    number: int
    """From 1."""
    total: int
    seconds_left: float | None
    """Of all that is left, by what the finished steps took; None before anything is known."""


@dataclass
class DemoWatch:
    """How a demo tells what it is doing; every hook may be left as it is."""

    train: Callable[[str, int, int], None] = field(default=lambda name, done, total: None)
    """Steps of a model of the demo's own: its name, steps done, steps in all."""
    step: Callable[[Step], Any] = field(default=lambda step: step.function(**step.arguments))
    """Takes a step, and returns what its function returns."""


@dataclass
class ReproduceWatch(DemoWatch):
    """How `reproduce` tells what it is doing; every hook may be left as it is."""

    at: Callable[[Begun], None] = field(default=lambda begun: None)
    """A step begins."""
    fetch: Callable[[str], None] = field(default=lambda name: None)
    """A data set is downloaded."""
    end: Callable[[Outcome], None] = field(default=lambda outcome: None)
    """A step did not finish."""
