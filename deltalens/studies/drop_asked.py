"""What a drop study was asked for, checked before anything is loaded."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from deltalens.errors import DeltaLensError
from deltalens.io.pairing import Pairing
from deltalens.io.records import Setting
from deltalens.io.records.identity import Union
from deltalens.names import Scope
from deltalens.numerics.rates import show_rate
from deltalens.numerics.selection.prefix import STRATEGIES
from deltalens.scoring.code import KnownFunction, identify
from deltalens.scoring.rows import DataFile
from deltalens.studies import axes
from deltalens.studies.selecting import DropSetting, check_strategy

__all__ = [
    "BASE",
    "GROWS",
    "DropAsked",
    "FidelityTexts",
    "MeasureAsked",
    "Metric",
    "answer_regex",
    "check_metrics",
    "identity_of",
    "known_metric",
    "measured_by",
    "measuring_identity",
]

FIDELITY = {"kl", "top1_agreement"}
BASE = "base"
"""The strategy of the cell that is the base's own model."""
GROWS: dict[str, Union] = {
    "strategies": axes.named(STRATEGIES),
    "rates": axes.rates,
    "seeds": axes.largest,
}
"""The axes of a drop study."""

Metric = Callable[[nn.Module], dict[str, float]]
"""Any measurement of a model: name -> value."""


@dataclass(frozen=True, kw_only=True)
class FidelityTexts:
    """The texts that fidelity is measured on when there is no data."""

    sequences: int = 64
    """How many are sampled from the fine-tune."""
    new_tokens: int = 128
    """Tokens sampled per text."""
    seed: int = 0
    """Of the sampling."""


@dataclass(frozen=True, kw_only=True)
class MeasureAsked:
    """What is measured in every cell, checked."""

    metrics: tuple[str, ...]
    batch_tokens: int
    answer_pattern: re.Pattern[str] | None
    fidelity: FidelityTexts
    files: tuple[DataFile, ...]
    custom: dict[str, Any] | None = field(default=None)
    """What is known of a metric of the caller's."""

    @property
    def wants_fidelity(self) -> bool:
        """Without data and without a metric of the caller's; or where it is named."""
        named = FIDELITY & set(self.metrics)
        return bool(named) or not (self.files or self.custom)


@dataclass(frozen=True, kw_only=True)
class DropAsked(MeasureAsked):
    """A drop study's arguments, checked."""

    strategies: tuple[str, ...]
    rates: tuple[Fraction, ...]
    scope: Scope
    seeds: int
    rescale: bool
    changed_only: bool
    include: str | None
    exclude: str | None

    def grown(self, asked: Mapping[str, Any]) -> DropAsked:
        """The same with all of the axes of the study that it becomes a part of."""
        return replace(
            self,
            strategies=tuple(asked["strategies"]),
            rates=tuple(map(Fraction, asked["rates"])),
            seeds=asked["seeds"],
        )

    def cells(self, unpaired: bool) -> list[Setting]:
        """All cells: the strategies in turn, rates ascending; seeds for the random one.

        Args:
            unpaired: tensors are on one side only: rate 1 is not the base, which is a cell itself.
        """
        return [
            {"strategy": strategy, "scope": self.scope, "rate": float(rate), "seed": seed}
            for strategy in self.strategies
            for seed in range(self.seeds if strategy == "random" else 1)
            for rate in self.rates
        ] + [{"strategy": BASE, "scope": self.scope, "rate": 1.0, "seed": 0}] * unpaired

    def drop_settings(self) -> list[DropSetting]:
        """What is selected for: every cell but the fine-tune and the base themselves."""
        return [
            DropSetting(check_strategy(strategy), rate, seed)
            for strategy in self.strategies
            for seed in range(self.seeds if strategy == "random" else 1)
            for rate in self.rates
            if 0 < rate < 1 or (rate == 1 and self.changed_only)
        ]


def known_metric(metric: Metric | None, version: str | int | None) -> KnownFunction:
    """What a study records of a metric of the caller's.

    Raises:
        DeltaLensError: a version of nothing.
    """
    if metric is None and version is not None:
        raise DeltaLensError(f"version {version!r}: of a metric of your own, and none is given")
    return identify(metric, version)


def measured_by(metric: Metric, model: nn.Module) -> dict[str, float]:
    """What a metric of the caller's measures.

    Raises:
        DeltaLensError: it gives something else than numbers by name.
    """
    with torch.inference_mode():
        found: Any = metric(model)
    try:
        named = {str(name): float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        shown = textwrap.shorten(repr(found), 100, placeholder=" ...")
        raise DeltaLensError(
            f"the metric gives {shown} ({type(found).__name__}): it has to return a number for "
            "each name, as {'accuracy': 0.5}"
        ) from error
    if not named:
        raise DeltaLensError("the metric measured nothing: it has to return {name: value}")
    return named


def answer_regex(text: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text is not None else None
    except re.error as error:
        raise DeltaLensError(f"answer pattern {text!r}: no regular expression: {error}") from error


def check_metrics(asked: MeasureAsked) -> None:
    names = [file.name for file in asked.files]
    twice = [str(file.path) for file in asked.files if names.count(file.name) > 1]
    if twice:
        raise DeltaLensError(f"data files of the same name: {', '.join(twice)}; rename one")
    known = set(FIDELITY) if not asked.custom else set()
    if asked.files:
        known |= {"loss", "perplexity"}
        if any(file.rows[0].answered for file in asked.files):
            known |= {"exact_match"}
    if len(asked.files) > 1:
        known |= {f"{file.name}/{name}" for file in asked.files for name in known - FIDELITY}
    unknown = [name for name in asked.metrics if name not in known]
    if unknown and not asked.custom:
        raise DeltaLensError(
            f"metric {unknown[0]!r} is not measured here; there are {', '.join(sorted(known))}"
        )


def identity_of(
    asked: DropAsked, pairing: Pairing, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Everything that decides the numbers: two calls with the same are the same study."""
    return {
        "ft": pairing.ft.identity,
        "base": pairing.base.identity,
        "strategies": list(asked.strategies),
        "rates": [show_rate(rate) for rate in asked.rates],
        "scope": asked.scope,
        "seeds": asked.seeds,
        "rescale": asked.rescale,
        "changed_only": asked.changed_only,
        "include": asked.include,
        "exclude": asked.exclude,
        **measuring_identity(asked, device, dtype),
    }


def measuring_identity(
    asked: MeasureAsked, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """The part of a study's identity that says what is measured, and how."""
    return {
        "data": [file.identity for file in asked.files],
        "metrics": list(asked.metrics),
        "metric": asked.custom,
        "answer_pattern": asked.answer_pattern.pattern if asked.answer_pattern else None,
        "fidelity": [asked.fidelity.sequences, asked.fidelity.new_tokens, asked.fidelity.seed]
        if asked.wants_fidelity
        else None,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_tokens": asked.batch_tokens,
    }
