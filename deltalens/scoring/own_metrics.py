"""Metrics that deltalens does not know: functions of the caller's, and those of installed
packages."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deltalens.catalog.metrics import DIRECTIONS, METRICS, Better
from deltalens.catalog.plugins import find, plugins
from deltalens.errors import DeltaLensError
from deltalens.scoring.code import KnownFunction, identify

__all__ = ["InstalledMetric", "Metric", "known_metric", "measured_by"]

Metric = Callable[[nn.Module], float | Mapping[str, float]]
"""Any measurement of a model: a number, or numbers by name."""


def known_metric(metric: Metric | None, version: str | int | None) -> KnownFunction:
    """What a study records of a metric of the caller's.

    Raises:
        DeltaLensError: a version of nothing.
    """
    if metric is None and version is not None:
        raise DeltaLensError(f"version {version!r}: of a metric of your own, and none is given")
    return identify(metric, version)


def measured_by(metric: Metric, model: nn.Module) -> dict[str, float]:
    """What a metric of the caller's measures. A number alone is called as the function is.

    Raises:
        DeltaLensError: it gives something else than numbers.
    """
    with torch.inference_mode():
        found: Any = metric(model)
    return _numbers(found, _name(metric), "the metric")


def _numbers(found: Any, name: str, said: str) -> dict[str, float]:
    try:
        if hasattr(found, "items"):
            named = {str(one): float(value) for one, value in found.items()}
        else:
            named = {name: float(found)}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        shown = textwrap.shorten(repr(found), 100, placeholder=" ...")
        raise DeltaLensError(
            f"{said} gives {shown} ({type(found).__name__}): it has to return a number, or a "
            "number for each name, as {'accuracy': 0.5}"
        ) from error
    if not named:
        raise DeltaLensError(f"{said} measured nothing: it has to return {{name: value}}")
    return named


def _name(metric: Any) -> str:
    """What a number alone is called: as the function is, or `metric` where it has no name."""
    while isinstance(metric, functools.partial):
        metric = metric.func
    name = str(getattr(metric, "__name__", ""))
    return name if name.isidentifier() else "metric"


@dataclass(frozen=True)
class InstalledMetric:
    """A metric of an installed package, by an entry point `deltalens.metrics`: the name is the
    metric's; the object has `measure(model, tokenizer)`, which returns a number or numbers by name,
    and may say `better`, `label`, `unit`, `per_cent` and `ratio`, as `catalog.metrics.Metric` has
    them. It is known by its name: any process finds it there."""

    name: str
    distribution: str
    version: str
    """Of the package."""

    @classmethod
    def found(cls, name: str) -> InstalledMetric | None:
        """The metric of this name; None where no package has it, or it is one of ours.

        Raises:
            DeltaLensError: two packages have it, or it has nothing to measure with.
        """
        plugin = find("metric", name, METRICS)
        if plugin is None:
            return None
        one = cls(name, plugin.package, plugin.version)
        one.check()
        return one

    @staticmethod
    def names() -> set[str]:
        """Of all that are installed."""
        return {*plugins("metric", METRICS)}

    @property
    def better(self) -> Better | None:
        """Which way it is better; None where the package does not say."""
        said: Better | None = getattr(self._loaded(), "better", None)
        return said

    def check(self) -> None:
        """Load it, so that whatever is wrong is said before any work.

        Raises:
            DeltaLensError: it cannot be loaded, measures nothing, or says no direction.
        """
        if self.better not in (*DIRECTIONS, None):
            known = " or ".join(map(repr, DIRECTIONS))
            raise DeltaLensError(f"{self._where}: better is {self.better!r}; {known}")

    def measure(self, model: nn.Module, tokenizer: Any) -> dict[str, float]:
        """What it measures: one number is called as the metric is, several `NAME/...`.

        Raises:
            DeltaLensError: it gives something else than numbers.
        """
        with torch.inference_mode():
            found = self._loaded().measure(model, tokenizer)
        several = hasattr(found, "items")
        named = _numbers(found, self.name, self._where)
        return {f"{self.name}/{one}" if several else one: value for one, value in named.items()}

    @property
    def _where(self) -> str:
        return f"metric {self.name!r} of {self.distribution} {self.version}"

    def _loaded(self) -> Any:
        plugin = find("metric", self.name, METRICS)
        made = plugin.load() if plugin else None
        if not callable(getattr(made, "measure", None)):
            raise DeltaLensError(f"{self._where}: has no measure(model, tokenizer)")
        return made
