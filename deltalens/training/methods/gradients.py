"""Methods that mask gradients: Gradient-Mask Tuning and its baselines (arXiv 2406.15330)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from deltalens.names import check_scope
from deltalens.training.methods.base import Method, check_choice, facts_here, setting
from deltalens.training.methods.ratios import show_ratios, single_ratio

if TYPE_CHECKING:
    from deltalens.integrations.transformers import SubscriberCallback

__all__ = ["Gmt", "Hft", "OneOffDrop", "RandomMask"]


def _ratio() -> Any:
    return setting("0.2", "Fraction of each gradient masked out (0.2).", metavar="RATIO")


def _scope() -> Any:
    return setting("tensor", "What is ranked together (tensor).", metavar="tensor|layer|global")


def _apply_to() -> Any:
    about = "Mask the gradient, or the whole update of a step (gradient)."
    return setting("gradient", about, metavar="gradient|update")


def _include() -> Any:
    return setting(None, "Mask only tensors whose name matches.", metavar="REGEX")


def _exclude() -> Any:
    return setting(None, "Leave out tensors whose name matches.", metavar="REGEX")


@dataclass(frozen=True, kw_only=True)
class _WithRatio(Method):
    """A method with one mask ratio for all tensors."""

    mask_ratio: str = _ratio()

    @property
    def ratio(self) -> Fraction:
        """The fraction masked out, in [0, 1)."""
        return single_ratio(self.mask_ratio, self.name)

    def check(self) -> None:
        """See `Method`."""
        self.ratio  # noqa: B018
        for name, choices in (("apply_to", ("gradient", "update")),):
            if name in self.own_settings():
                check_choice(name, getattr(self, name), choices)
        if "scope" in self.own_settings():
            check_scope(getattr(self, "scope"))  # noqa: B009

    def settings(self, learning_rate: float | None) -> dict[str, Any]:
        """See `Method`."""
        return {
            **super().settings(learning_rate),
            "mask_ratio": show_ratios({"": self.ratio}),
        }


@dataclass(frozen=True, kw_only=True)
class Gmt(_WithRatio):
    """Gradient-Mask Tuning: in each step only the largest gradients reach the optimizer."""

    name = "gmt"
    facts = facts_here("gmt")

    mask_ratio: str = _ratio()
    scope: str = _scope()
    apply_to: str = _apply_to()
    include: str | None = _include()
    exclude: str | None = _exclude()

    def callbacks(self, seed: int) -> list[SubscriberCallback[Any]]:
        """See `Method`."""
        from deltalens.integrations.transformers import GradientMaskCallback

        return [
            GradientMaskCallback(
                self.ratio,
                scope=self.scope,
                apply_to=self.apply_to,
                include=self.include,
                exclude=self.exclude,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class RandomMask(_WithRatio):
    """Mask a random share of every gradient, drawn anew in each step."""

    name = "random-mask"
    facts = facts_here("random-mask")

    mask_ratio: str = _ratio()
    apply_to: str = _apply_to()
    include: str | None = _include()
    exclude: str | None = _exclude()

    def callbacks(self, seed: int) -> list[SubscriberCallback[Any]]:
        """See `Method`."""
        from deltalens.integrations.transformers import RandomMaskCallback

        return [
            RandomMaskCallback(
                self.ratio,
                apply_to=self.apply_to,
                seed=seed,
                include=self.include,
                exclude=self.exclude,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Hft(Method):
    """Half Fine-Tuning: half of the layers stay frozen."""

    name = "hft"
    facts = facts_here("hft")

    include: str | None = _include()
    exclude: str | None = _exclude()

    def callbacks(self, seed: int) -> list[SubscriberCallback[Any]]:
        """See `Method`."""
        from deltalens.integrations.transformers import HalfFreezeCallback

        return [HalfFreezeCallback(seed=seed, include=self.include, exclude=self.exclude)]


@dataclass(frozen=True, kw_only=True)
class OneOffDrop(_WithRatio):
    """Plain fine-tuning, then the smallest deltas go back to the base; in studies only."""

    name = "one-off-drop"
    facts = facts_here("one-off-drop")

    mask_ratio: str = _ratio()
    scope: str = _scope()
