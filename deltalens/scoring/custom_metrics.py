"""Metrics other than deltalens's own: a caller's functions, and metrics of installed packages."""

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
from deltalens.scoring.code import FunctionIdentity, identify

__all__ = ["InstalledMetric", "Metric", "identify_metric", "measure_with"]

Metric = Callable[[nn.Module], float | Mapping[str, float]]
"""Any measurement of a model: a number, or numbers by name."""


def identify_metric(metric: Metric | None, version: str | int | None) -> FunctionIdentity:
    """Identify a caller's metric, for a study's record.

    Args:
        metric: the metric; None: there is none.
        version: the caller's version of it; None: its code is digested.

    Returns:
        What the study records.

    Raises:
        DeltaLensError: there is a version, but no metric.
    """
    if metric is None and version is not None:
        raise DeltaLensError(
            f"version {version!r} is the version of a metric of your own, but `metric` is not set"
        )
    return identify(metric, version)


def measure_with(metric: Metric, model: nn.Module) -> dict[str, float]:
    """Measure a model with a caller's metric.

    Args:
        metric: the metric.
        model: the model.

    Returns:
        Numbers by name; a single number has the function's name.

    Raises:
        DeltaLensError: the metric returns something other than numbers.
    """
    with torch.inference_mode():
        result: Any = metric(model)
    return _numbers(result, _name(metric), "the metric")


def _numbers(result: Any, name: str, source: str) -> dict[str, float]:
    try:
        if hasattr(result, "items"):
            numbers = {str(key): float(value) for key, value in result.items()}
        else:
            numbers = {name: float(result)}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        shown = textwrap.shorten(repr(result), 100, placeholder=" ...")
        raise DeltaLensError(
            f"{source} returned {shown} ({type(result).__name__}): it must return a number, or "
            "numbers by name, such as {'accuracy': 0.5}"
        ) from error
    if not numbers:
        raise DeltaLensError(f"{source} returned no numbers: it must return {{name: value}}")
    return numbers


def _name(metric: Any) -> str:
    """The name of a metric that returns a single number: the function's, or else `metric`."""
    while isinstance(metric, functools.partial):
        metric = metric.func
    name = str(getattr(metric, "__name__", ""))
    return name if name.isidentifier() else "metric"


@dataclass(frozen=True)
class InstalledMetric:
    """A metric of an installed package.

    The package declares it by an entry point `deltalens.metrics`, whose name is the metric's. The
    object has a method `measure(model, tokenizer)`, which returns a number or numbers by name. It
    may have the attributes `better`, `label`, `unit`, `per_cent` and `ratio`, as
    `catalog.metrics.Metric` describes them. An instance of this class stores only names, so that
    it can be sent to another process.
    """

    name: str
    distribution: str
    """Name of the package."""
    version: str
    """Version of the package."""

    @classmethod
    def find(cls, name: str) -> InstalledMetric | None:
        """Look up a metric among those of installed packages.

        Args:
            name: the metric's name.

        Returns:
            The metric; None if no package has it, or if it is one of deltalens's own.

        Raises:
            DeltaLensError: two packages have it, or it fails `check`.
        """
        plugin = find("metric", name, METRICS)
        if plugin is None:
            return None
        metric = cls(name, plugin.package, plugin.version)
        metric.check()
        return metric

    @staticmethod
    def names() -> set[str]:
        """List the metrics of installed packages.

        Returns:
            Their names.
        """
        return {*plugins("metric", METRICS)}

    @property
    def better(self) -> Better | None:
        """Which values are better; None if the package does not say."""
        better: Better | None = getattr(self._object(), "better", None)
        return better

    def check(self) -> None:
        """Load the metric, so that an error in it is reported before any work is done.

        Raises:
            DeltaLensError: it cannot be loaded, has no method `measure`, or an unknown direction.
        """
        if self.better not in (*DIRECTIONS, None):
            directions = " or ".join(map(repr, DIRECTIONS))
            raise DeltaLensError(
                f"{self._where}: `better` is {self.better!r}; it must be {directions}"
            )

    def measure(self, model: nn.Module, tokenizer: Any) -> dict[str, float]:
        """Measure a model.

        Args:
            model: the model.
            tokenizer: its tokenizer; None if it has none.

        Returns:
            A single number under the metric's name, or several as `NAME/...`.

        Raises:
            DeltaLensError: the metric returns something other than numbers.
        """
        with torch.inference_mode():
            result = self._object().measure(model, tokenizer)
        by_name = hasattr(result, "items")
        numbers = _numbers(result, self.name, self._where)
        return {f"{self.name}/{key}" if by_name else key: value for key, value in numbers.items()}

    @property
    def _where(self) -> str:
        return f"metric {self.name!r} of {self.distribution} {self.version}"

    def _object(self) -> Any:
        plugin = find("metric", self.name, METRICS)
        metric = plugin.load() if plugin else None
        if not callable(getattr(metric, "measure", None)):
            raise DeltaLensError(f"{self._where}: has no method measure(model, tokenizer)")
        return metric
