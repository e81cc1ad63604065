"""How the demo is made: every number that its models depend on, in one place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from deltalens.errors import DeltaLensError

FORMAT = 1
"""Raised when the code changes what the same fields lead to, so that old folders are remade."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The demo's settings; the defaults are the ones that its documentation shows."""

    seed: int = 0
    """Start of all randomness: initial weights, held-out rows and training rows."""
    hidden_size: int = 96
    """Width of the residual stream."""
    intermediate_size: int = 192
    """Width inside the gated feed-forward layers."""
    blocks: int = 3
    """Number of transformer blocks."""
    heads: int = 3
    """Attention heads a block; must divide the hidden size."""
    positions: int = 128
    """Longest row in tokens, with its beginning and end."""
    batch_size: int = 32
    """Rows a training step, in both stages."""
    base_steps: int = 1300
    """Steps that train the base model from nothing."""
    finetune_steps: int = 300
    """Steps that fine-tune the base model on maths."""
    base_learning_rate: float = 2e-3
    """Peak learning rate of the base model's training."""
    finetune_learning_rate: float = 2e-3
    """Peak learning rate of the fine-tuning."""
    sums_weight: float = 0.25
    """Relative frequency of raw sums in the base mixture."""
    counting_weight: float = 0.05
    """Relative frequency of counting in the base mixture."""
    one_event_weight: float = 0.30
    """Relative frequency of one-event stories in the base mixture."""
    one_call_weight: float = 0.20
    """Relative frequency of single calls on digits in the base mixture."""
    one_instruction_weight: float = 0.20
    """Relative frequency of single instructions in the base mixture."""
    domain_weight: float = 0.003
    """Relative frequency of each target domain in the base mixture: a trace keeps its loss sane."""
    validation_rows: int = 200
    """Held-out rows a domain to choose settings by."""
    test_rows: int = 300
    """Held-out rows a domain that no choice may depend on."""

    def __post_init__(self) -> None:
        faults = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_weight") and not value >= 0:
                faults.append(f"{field.name} must not be negative, not {value}")
            elif not field.name.endswith("_weight") and field.name != "seed" and not value > 0:
                faults.append(f"{field.name} must be positive, not {value}")
        if not faults and self.hidden_size % (2 * self.heads):
            faults.append(
                f"hidden_size must be a multiple of twice the heads, "
                f"not {self.hidden_size} with {self.heads} heads"
            )
        if not faults and not sum(self.base_mixture().values()) > 0:
            faults.append("at least one weight of the base mixture must be above 0")
        if faults:
            raise DeltaLensError("this demo recipe cannot work: " + "; ".join(faults))

    def base_mixture(self) -> dict[str, float]:
        """Relative frequency of each task in the base model's training, by the task's name."""
        return {
            "sums": self.sums_weight,
            "counting": self.counting_weight,
            "one_event": self.one_event_weight,
            "one_call": self.one_call_weight,
            "one_instruction": self.one_instruction_weight,
            "maths": self.domain_weight,
            "code": self.domain_weight,
            "instructions": self.domain_weight,
        }

    def fingerprint(self) -> str:
        """Hexadecimal sha256 over every field and the recipe format: equal means the same demo."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


DEFAULT_RECIPE = Recipe()
"""The demo that the documentation shows."""
