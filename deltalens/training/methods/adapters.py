"""Low-rank adapters (LoRA), by peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.errors import errors_from
from deltalens.training.methods.base import Method, Ready, check_above_zero, facts_here, setting

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Lora", "LoraContinued", "LoraOnFt"]


@dataclass(frozen=True, kw_only=True)
class Lora(Method):
    """Adapters on every linear layer but the head, merged into the weights at the end."""

    name = "lora"
    facts = facts_here("lora")

    lora_rank: int = setting(64, "Rank of every adapter (64).")
    lora_alpha: int = setting(16, "Scale of an adapter, times its rank (16).")
    lora_dropout: float = setting(0.1, "Dropout on an adapter's input (0.1).")

    def check(self) -> None:
        """See `Method`."""
        check_above_zero("lora_rank", self.lora_rank)
        check_above_zero("lora_alpha", self.lora_alpha)

    def prepare(self, model: nn.Module, seed: int) -> Ready:
        """See `Method`; refused where peft is missing, or no layer takes an adapter."""
        from deltalens.training.lora import adapted

        adapter, notes = adapted(model, self.lora_rank, self.lora_alpha, self.lora_dropout)

        def merged() -> nn.Module:
            with errors_from("peft", "the adapters cannot be merged"):
                plain: nn.Module = adapter.merge_and_unload()
            return plain

        def save(folder: Any) -> None:
            with errors_from("peft", "the adapter cannot be written"):
                adapter.save_pretrained(str(folder))

        return Ready(adapter, plain=merged, adapter=save, notes=notes)


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
