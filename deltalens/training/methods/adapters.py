"""Low-rank adapters (LoRA, PiSSA), by peft."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import DeltaLensError, errors_from
from deltalens.training.methods.base import (
    Calibration,
    Method,
    Ready,
    check_above_zero,
    facts_here,
    setting,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Lora", "LoraContinued", "LoraOnFt", "Pissa"]

_AS_RANK = "rank"
"""The alpha that is the rank: the adapter is then added as it is."""


def _alpha(default: int | str) -> Any:
    about = f"An adapter counts alpha / rank times ({default})."
    return setting(default, about, metavar="N|rank")


def _targets() -> Any:
    about = "Adapted: attention, linear (all but the head), or names as q_proj,v_proj (linear)."
    return setting("linear", about, metavar="TARGETS")


@dataclass(frozen=True, kw_only=True)
class _LowRank(Method):
    """A method with adapters of one rank."""

    budget_settings = ("lora_rank",)

    lora_rank: int = setting(64, "Rank of every adapter (64).")
    lora_alpha: int | str = _alpha(16)
    lora_dropout: float = setting(0.1, "Dropout on an adapter's input (0.1).")
    targets: str = _targets()

    @property
    def alpha(self) -> int:
        """An adapter's product counts this over its rank times."""
        return self.lora_rank if isinstance(self.lora_alpha, str) else self.lora_alpha

    def check(self) -> None:
        """See `Method`."""
        check_above_zero("lora_rank", self.lora_rank)
        if isinstance(self.lora_alpha, str) and self.lora_alpha != _AS_RANK:
            raise DeltaLensError(f"lora_alpha {self.lora_alpha!r}: a number, or {_AS_RANK}")
        check_above_zero("lora_alpha", self.alpha)

    def settings(self, learning_rate: float | None) -> dict[str, Any]:
        """See `Method`; records from before there were targets go on where all are adapted."""
        values = super().settings(learning_rate)
        if self.targets == "linear":
            del values["targets"]
        return values


def _merge(adapter: Any) -> Callable[[], nn.Module]:
    def merged() -> nn.Module:
        with errors_from("peft", "the adapters cannot be merged"):
            plain: nn.Module = adapter.merge_and_unload()
        return plain

    return merged


@dataclass(frozen=True, kw_only=True)
class Lora(_LowRank):
    """Adapters on every linear layer but the head, merged into the weights at the end."""

    name = "lora"
    facts = facts_here("lora")

    def prepare(self, model: nn.Module, seed: int, calibration: Calibration) -> Ready:
        """See `Method`; refused where peft is missing, or no layer takes an adapter."""
        from deltalens.training.lora import adapted, merged_state

        adapter, notes = adapted(model, self.lora_rank, self.alpha, self.lora_dropout, self.targets)

        def save(folder: Any) -> None:
            with errors_from("peft", "the adapter cannot be written"):
                adapter.save_pretrained(str(folder))

        return Ready(
            adapter,
            plain=_merge(adapter),
            plain_state=lambda: merged_state(adapter),
            adapter=save,
            notes=notes,
        )


@dataclass(frozen=True, kw_only=True)
class LoraContinued(Lora):
    """LoRA from the base, then another on its merged result; in comparisons only."""

    name = "lora-continued"
    facts = facts_here("lora-continued")


@dataclass(frozen=True, kw_only=True)
class LoraOnFt(Lora):
    """LoRA on the fine-tune instead of the base; in comparisons only."""

    name = "lora-on-ft"
    facts = facts_here("lora-on-ft")


@dataclass(frozen=True, kw_only=True)
class Pissa(_LowRank):
    """PiSSA: an adapter begins as a weight's principal singular values and vectors, and the weight
    becomes the residual. What is measured and written is their sum; the adapter that is written
    belongs to the base itself, as a LoRA of twice the rank."""

    name = "pissa"
    facts = facts_here("pissa")
    changes_base = True

    lora_alpha: int | str = _alpha(_AS_RANK)
    # The adapter is part of the model from the beginning: dropout would take that part away.
    lora_dropout: float = setting(0.0, "Dropout on an adapter's input (0).")

    def prepare(self, model: nn.Module, seed: int, calibration: Calibration) -> Ready:
        """See `Method`; refused where peft is missing, or no layer takes an adapter."""
        from deltalens.training.lora import merged_state
        from deltalens.training.pissa import pissa_adapted, save_for_base

        adapter, begun, notes = pissa_adapted(
            model, self.lora_rank, self.alpha, self.lora_dropout, self.targets, seed
        )
        return Ready(
            adapter,
            plain=_merge(adapter),
            plain_state=lambda: merged_state(adapter),
            adapter=lambda folder: save_for_base(adapter, begun, Path(folder)),
            notes=notes,
        )
