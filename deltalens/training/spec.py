"""The specification of a training: its method, and the settings that every method shares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deltalens.catalog.methods import CLASSIFICATION, LABELED, OBJECTIVES, REGRESSION
from deltalens.errors import DeltaLensError
from deltalens.training.methods import Method
from deltalens.training.methods.base import LEARNING_RATE, check_above_zero, check_choice
from deltalens.training.methods.plain import Sft

__all__ = ["TrainingSpec", "config_class"]


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Everything that decides the result of a training, except the model and the rows.

    Raises:
        DeltaLensError: a setting that no training can have.
    """

    method: Method = field(default_factory=Sft)
    """What is done, with its own settings; in a study each cell has its own."""
    objective: str = "sft"
    """`sft`; `dpo` for rows of preferences; `classification` or `regression` for rows of sentences
    with labels, which decide it themselves."""
    labels: tuple[str, ...] = ()
    """The classes by their numbers, which the rows or the model decide; () of other objectives."""
    epochs: float = 1.0
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 8
    """Rows in a micro-batch."""
    accumulate: int = 1
    """Micro-batches in a step."""
    accumulate_mean: str = "tokens"
    """What a step's loss is the mean of: all `tokens` of its micro-batches, as in trl; or `batch`,
    the micro-batches' own means with equal weights (GMT, Eq. 2). DPO and labels always have the
    latter."""
    learning_rate: float | None = None
    """The peak; the method's default if None."""
    weight_decay: float = 0.0
    warmup: float = 0.03
    """The share of the steps over which the learning rate rises; it falls as a cosine (GMT)."""
    seed: int = 0
    """Decides the order of the rows, and whatever a method draws at random."""
    max_length: int | None = None
    """Longest row in tokens; the model's positions if None."""
    loss_on: str = "completion"
    """`completion`, or `all` tokens."""
    gradient_checkpointing: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Further options of trl's configuration."""

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        if self.objective == "dpo" and self.method.changes_base:
            raise DeltaLensError(
                f"method {self.method.name}: under dpo the reference is the model without its "
                "adapter, which is not the base; use lora"
            )
        check_choice("loss_on", self.loss_on, ("completion", "all"))
        check_choice("accumulate_mean", self.accumulate_mean, ("tokens", "batch"))
        for name in ("epochs", "batch_size", "accumulate", "learning_rate", "steps", "max_length"):
            check_above_zero(name, getattr(self, name))
        if not 0 <= self.warmup < 1:
            raise DeltaLensError(f"warmup {self.warmup}: a share of the steps, in [0, 1)")

    def of(self, method: Method, seed: int = 0) -> TrainingSpec:
        """The same training by another method.

        Args:
            method: with its own settings.
            seed: of that training.

        Returns:
            Its specification.
        """
        return dataclasses.replace(self, method=method, seed=seed)

    def of_same_rows(self, other: TrainingSpec) -> TrainingSpec:
        """Another training on the rows of this one.

        Args:
            other: that training.

        Returns:
            The same, with what the rows decide.
        """
        decided = ("objective", "labels", "accumulate_mean")
        return dataclasses.replace(other, **{name: getattr(self, name) for name in decided})

    @property
    def peak_learning_rate(self) -> float:
        """The optimizer's."""
        return self.method.peak_learning_rate(self.learning_rate)

    @property
    def beta(self) -> float:
        """Of DPO's rewards: the recipe's, or trl's default."""
        known = {each.name: each.default for each in dataclasses.fields(config_class("dpo"))}
        given = self.recipe.get("beta", known["beta"])
        try:
            return float(given)
        except (TypeError, ValueError) as error:
            raise DeltaLensError(f"beta {given!r}: not a number") from error

    @property
    def loss_unit(self) -> str:
        """What the training loss is, and in which unit."""
        kinds = self.recipe.get("loss_type")
        named = ", ".join(map(str, kinds)) if isinstance(kinds, list) else kinds
        if self.objective == "dpo":
            plain = named in (None, "sigmoid")
            return (
                "DPO loss, nats per preference" if plain else f"DPO loss ({named}) per preference"
            )
        if self.objective in LABELED:
            return _LABELED_LOSS[self.objective]
        plain = named in (None, "nll", "chunked_nll")
        return "nats per target token" if plain else f"{named} loss per target token"

    def shared(self) -> dict[str, Any]:
        """The settings that every method has, without the seed.

        Returns:
            JSON values by name.
        """
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        values: dict[str, Any] = json.loads(
            json.dumps({k: v for k, v in own.items() if k != "method"})
        )
        rate = LEARNING_RATE if self.learning_rate is None else self.learning_rate
        # Records from before there were labels go on, as long as they have none.
        left_out = {"seed"} if self.labels else {"seed", "labels"}
        return {name: value for name, value in values.items() if name not in left_out} | {
            "learning_rate": rate
        }

    def settings(self) -> dict[str, Any]:
        """The method's own settings as they are used.

        Returns:
            JSON values by name; `Method.from_record` takes them again.
        """
        return self.method.settings(self.learning_rate)

    def identity(self) -> dict[str, Any]:
        """Two trainings of one model on the same rows with equal identities have equal results.

        Returns:
            JSON values by name.
        """
        named = {"method": self.method.name, "seed": self.seed}
        return {**named, **self.settings(), **self.shared()}


_LABELED_LOSS = {
    CLASSIFICATION: "cross-entropy, nats per row",
    REGRESSION: "squared error per row",
}


def config_class(objective: str) -> Any:
    """The trainer's configuration of an objective.

    Args:
        objective: `sft`, `dpo`, `classification` or `regression`.

    Returns:
        `trl.SFTConfig`, `trl.DPOConfig` or `transformers.TrainingArguments`.

    Raises:
        DeltaLensError: trl is not installed.
    """
    if objective in LABELED:
        from transformers import TrainingArguments

        return TrainingArguments
    try:
        import trl
    except ImportError as error:
        raise DeltaLensError("training needs trl: pip install 'deltalens[train]'") from error
    return trl.DPOConfig if objective == "dpo" else trl.SFTConfig
