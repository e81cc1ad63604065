"""Methods that remove weights: Mask Fine-Tuning and its baselines (arXiv 2503.22764)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from deltalens.errors import DeltaLensError
from deltalens.training.methods.base import (
    SCORE_LEARNING_RATE,
    Calibration,
    Method,
    Ready,
    check_above_zero,
    facts_here,
    setting,
)
from deltalens.training.methods.ratios import check_below_one, parse_ratios, show_ratios

if TYPE_CHECKING:
    from torch import nn

    from deltalens.methods.weight_masks import WeightMasks

__all__ = ["L1Mask", "L1MaskComplement", "Mft", "RandomMaskWeights", "RandomMaskWeightsComplement"]

_DEFAULT_RATIO = "0.1"


def _complement() -> Any:
    return setting(False, "Remove 1 - ratio of the weights: those the mask would keep.")


@dataclass(frozen=True, kw_only=True)
class _OfWeights(Method):
    """A method that removes weights of the linear layers of some blocks."""

    replaces = MappingProxyType({"threshold": "mask_ratio", "include": "blocks"})

    mask_ratio: str | None = setting(
        None,
        f"Fraction removed ({_DEFAULT_RATIO}), also 0.1,q=0.2.",
        metavar="RATIOS",
    )
    blocks: str = setting("all", "Blocks whose weights are masked (all).", metavar="all|4-7,12")
    modules: str = setting(
        "attention,mlp", "Which of a block's layers are masked (both).", metavar="attention,mlp"
    )
    include: str | None = setting(
        None, "Mask layers whose name matches, not blocks.", metavar="REGEX"
    )

    @property
    def ratios(self) -> dict[str, Fraction]:
        """Name -> fraction removed; see `parse_ratios`."""
        return parse_ratios(self.mask_ratio or _DEFAULT_RATIO)

    def check(self) -> None:
        """See `Method`."""
        check_below_one(self.ratios)

    def settings(self, learning_rate: float | None) -> dict[str, Any]:
        """See `Method`."""
        return {**super().settings(learning_rate), "mask_ratio": show_ratios(self.ratios)}

    def layers(self) -> dict[str, Any]:
        """Which layers are masked, as the functions of `deltalens.methods` take it.

        Returns:
            Their arguments `blocks`, `modules` and `include`.
        """
        modules = [module.strip() for module in self.modules.split(",")]
        return {"blocks": self.blocks, "modules": modules, "include": self.include}

    def how_many(self) -> dict[str, Any]:
        """How many weights go, as the functions of `deltalens.methods` take it.

        Returns:
            Their argument `mask_ratio`.
        """
        ratios = self.ratios
        return {"mask_ratio": ratios[""] if {*ratios} == {""} else ratios}


@dataclass(frozen=True, kw_only=True)
class Mft(_OfWeights):
    """Mask Fine-Tuning: the weights stay frozen, and scores learn which of them to remove."""

    name = "mft"
    facts = facts_here("mft")

    threshold: float | None = setting(None, "Remove scores up to this, instead of a ratio.")
    rank_by: str = setting(
        "magnitude", "What of a score is ranked (magnitude).", metavar="magnitude|value"
    )
    init_std: float = setting(0.02, "Scores begin as N(0, this) (0.02).")
    score_learning_rate: float | None = setting(
        None,
        f"Peak rate of the scores (--lr, or {SCORE_LEARNING_RATE}).",
        flag="--score-lr",
    )

    def check(self) -> None:
        """See `Method`."""
        super().check()
        if self.threshold is not None and self.mask_ratio is not None:
            raise DeltaLensError("threshold and mask_ratio: give one of them")
        check_above_zero("score_learning_rate", self.score_learning_rate)

    def settings(self, learning_rate: float | None) -> dict[str, Any]:
        """See `Method`."""
        values = super().settings(learning_rate)
        if self.threshold is not None:
            values["mask_ratio"] = None
        return {**values, "score_learning_rate": self.peak_learning_rate(learning_rate)}

    def peak_learning_rate(self, learning_rate: float | None) -> float:
        """See `Method`."""
        return self.score_learning_rate or learning_rate or SCORE_LEARNING_RATE

    def how_many(self) -> dict[str, Any]:
        """See `_OfWeights`; with a threshold, that."""
        return super().how_many() if self.threshold is None else {"threshold": self.threshold}

    def prepare(self, model: nn.Module, seed: int, calibration: Calibration) -> Ready:
        """See `Method`."""
        from deltalens.methods.mft import MaskTuning

        tuning = MaskTuning(
            model,
            **self.layers(),
            **self.how_many(),
            rank_by=self.rank_by,
            init_std=self.init_std,
            seed=seed,
        )
        return Ready(
            model,
            plain=tuning.merge,
            masks=tuning.weight_masks,
            watched={"learned": tuning.packed_masks},
        )


@dataclass(frozen=True, kw_only=True)
class _NotLearned(_OfWeights):
    """A mask that is computed at once."""

    def mask(self, model: nn.Module, seed: int) -> WeightMasks:
        """Decide which weights go.

        Args:
            model: whose weights.
            seed: of random choices.

        Returns:
            The masks.
        """
        raise NotImplementedError

    @classmethod
    def from_record(cls, settings: Mapping[str, Any]) -> Self:
        """See `Method`; the record's ratio is of the weights removed, complement or not."""
        return cls(**{name: value for name, value in settings.items() if name != "complement"})

    def settings(self, learning_rate: float | None) -> dict[str, Any]:
        """See `Method`."""
        values = super().settings(learning_rate)
        return values | ({"complement": None} if "complement" in values else {})

    @property
    def ratios(self) -> dict[str, Fraction]:
        """Name -> fraction removed."""
        ratios = super().ratios
        if getattr(self, "complement", self.name.endswith("-complement")):
            return {name: 1 - ratio for name, ratio in ratios.items()}
        return ratios

    def prepare(self, model: nn.Module, seed: int, calibration: Calibration) -> Ready:
        """See `Method`."""
        masks = self.mask(model, seed)

        def merged() -> nn.Module:
            masks.merge()
            return model

        return Ready(model, plain=merged, masks=lambda: masks, trains=False)


@dataclass(frozen=True, kw_only=True)
class RandomMaskWeights(_NotLearned):
    """Remove a random share of the weights."""

    name = "random-mask-weights"
    facts = facts_here("random-mask-weights")

    complement: bool = _complement()

    def mask(self, model: nn.Module, seed: int) -> WeightMasks:
        """See `_NotLearned`."""
        from deltalens.methods.weight_masks import random_weight_mask

        return random_weight_mask(model, **self.layers(), **self.how_many(), seed=seed)


@dataclass(frozen=True, kw_only=True)
class L1Mask(_NotLearned):
    """Remove the smallest weights."""

    name = "l1-mask"
    facts = facts_here("l1-mask")

    complement: bool = _complement()

    def mask(self, model: nn.Module, seed: int) -> WeightMasks:
        """See `_NotLearned`."""
        from deltalens.methods.weight_masks import l1_weight_mask

        return l1_weight_mask(model, **self.layers(), **self.how_many())


@dataclass(frozen=True, kw_only=True)
class RandomMaskWeightsComplement(_NotLearned):
    """Remove what `random-mask-weights` keeps; in comparisons only."""

    name = "random-mask-weights-complement"
    facts = facts_here("random-mask-weights-complement")


@dataclass(frozen=True, kw_only=True)
class L1MaskComplement(_NotLearned):
    """Remove what `l1-mask` keeps; in comparisons only."""

    name = "l1-mask-complement"
    facts = facts_here("l1-mask-complement")
