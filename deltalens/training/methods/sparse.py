"""Sparse fine-tuning of the entries with the highest salience (SPEFT, arXiv 2412.13488)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.salience import EXPECTATIONS, SALIENCE_METRICS
from deltalens.errors import DeltaLensError
from deltalens.names import check_scope
from deltalens.numerics.rates import exact_share, show_rate
from deltalens.training.methods.base import (
    Calibration,
    Method,
    Ready,
    check_above_zero,
    check_choice,
    facts_here,
    setting,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Speft"]

_DENSITY = "0.05"


@dataclass(frozen=True, kw_only=True)
class Speft(Method):
    """Sparse tuning: the entries with the highest salience train, the rest stays as it is."""

    name = "speft"
    facts = facts_here("speft")
    budget_settings = ("like_lora", "density", "of_model")

    density: str | None = setting(
        None, f"Share of the adapted weights trained ({_DENSITY}).", metavar="SHARE"
    )
    of_model: str | None = setting(
        None, "Share of all the model's parameters, instead.", metavar="SHARE"
    )
    like_lora: int | None = setting(
        None, "As many as a LoRA of this rank has, instead.", metavar="RANK"
    )
    metric: str = setting("gradient", "What entries are ranked by (gradient).", metavar="METRIC")
    expectation: str | None = setting(
        None, "Metric of the mean, or mean of the metric.", metavar="inside|outside"
    )
    scope: str = setting(
        "global", "What is ranked together (global).", metavar="tensor|layer|global"
    )
    targets: str = setting(
        "attention", "attention, linear, or names of layers (attention).", metavar="TARGETS"
    )
    examples: int = setting(1024, "Rows that the ranking sees (1024).")
    refresh_every: int | None = setting(None, "Renew the masks before every such step.")
    ties: str = setting("hash", "Exactly so many, or all ties kept (hash).", metavar="hash|keep")

    def check(self) -> None:
        """See `Method`."""
        given = [self.density, self.of_model, self.like_lora]
        if sum(value is not None for value in given) > 1:
            raise DeltaLensError("density, of_model and like_lora: give one of them")
        for name in ("density", "of_model"):
            if (value := getattr(self, name)) is not None:
                share = exact_share(value, name)
                check_above_zero(name, float(share))
                object.__setattr__(self, name, show_rate(share))
        for name in ("like_lora", "examples", "refresh_every"):
            check_above_zero(name, getattr(self, name))
        check_scope(self.scope)
        check_choice("metric", self.metric, tuple(SALIENCE_METRICS))
        if self.expectation is not None:
            check_choice("expectation", self.expectation, tuple(EXPECTATIONS))
        check_choice("ties", self.ties, ("hash", "keep"))

    def settings(self, learning_rate: float | None) -> dict[str, Any]:
        """See `Method`."""
        return {**super().settings(learning_rate), **self.how_many()}

    def how_many(self) -> dict[str, Any]:
        """How many entries train, as `SparseTuning` takes it.

        Returns:
            The one of `density`, `of_model` and `like_lora` that counts.
        """
        for name in ("of_model", "like_lora"):
            if (value := getattr(self, name)) is not None:
                return {name: value}
        return {"density": self.density or _DENSITY}

    def prepare(self, model: nn.Module, seed: int, calibration: Calibration) -> Ready:
        """See `Method`."""
        from deltalens.methods.new_head import new_head
        from deltalens.methods.sparse.tuning import SparseTuning

        begun = time.perf_counter()
        data_free = SALIENCE_METRICS[self.metric].data_free
        tuning = SparseTuning(
            model,
            **self.how_many(),
            metric=self.metric,
            batches=None if data_free else calibration,
            steps=-(-self.examples // calibration.size),
            expectation=self.expectation,
            scope=self.scope,
            targets=self.targets,
            whole=new_head(model),
            refresh_every=self.refresh_every,
            ties=self.ties,
            seed=seed,
        )
        seconds = time.perf_counter() - begun

        def save(folder: Any) -> None:
            folder.mkdir()
            tuning.save(folder / "adapter.safetensors")

        budget = tuning.budget
        return Ready(
            model,
            plain=tuning.merge,
            adapter=save,
            notes=(str(budget), *tuning.notes),
            watched={} if self.refresh_every is None else {"learned": tuning.packed_masks},
            state=tuning,
            facts={
                "trained": budget.trained,
                "trained_density": budget.density,
                "trained_of_model": budget.share_of_model,
                "trained_with_adapter": budget.share_with_adapter,
                "salience_seconds": round(seconds, 3),
                "index_bytes": tuning.index_bytes,
            },
        )
