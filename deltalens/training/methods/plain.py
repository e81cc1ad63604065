"""Plain fine-tuning, and the models that studies measure as they are."""

from __future__ import annotations

from dataclasses import dataclass

from deltalens.training.methods.base import Method, facts_here

__all__ = ["Base", "Ft", "Sft"]


@dataclass(frozen=True, kw_only=True)
class Sft(Method):
    """Plain fine-tuning of all weights; under the objective `dpo`, DPO of all weights."""

    name = "sft"
    facts = facts_here("sft")


@dataclass(frozen=True, kw_only=True)
class Ft(Method):
    """The model that a study starts from, as it is."""

    name = "ft"
    facts = facts_here("ft")


@dataclass(frozen=True, kw_only=True)
class Base(Method):
    """The base of a comparison, as it is."""

    name = "base"
    facts = facts_here("base")
