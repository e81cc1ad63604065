"""What a training learns from its rows (their targets, preferences, or labels), and what that
changes about it: how rows are tokenized, which trainer takes them, and what a model needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deltalens.catalog.methods import LABELED
from deltalens.errors import DeltaLensError
from deltalens.methods.new_head import new_head
from deltalens.scoring.file_scoring import can_generate
from deltalens.scoring.finite import check_model
from deltalens.scoring.labels import Labels
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.rows import DataFile
from deltalens.scoring.sentences import (
    check_sentences,
    collate,
    encode_sentences,
    give_padding,
    labels_of,
)
from deltalens.scoring.tokens import padding_of
from deltalens.training.rows import collator, preferences, tokenized
from deltalens.training.spec import TrainingSpec

__all__ = ["Objective", "objective_of"]


class Objective:
    """Supervised fine-tuning on the targets of rows, by trl.

    Args:
        spec: the training.
    """

    library = "trl"
    """Whose trainer it is."""

    def __init__(self, spec: TrainingSpec) -> None:
        self.spec = spec

    def check_trainable(self, model: Any, tokenizer: Any | None, where: Path) -> None:
        """Refuse a model that cannot be trained so.

        Args:
            model, tokenizer: as they were loaded.
            where: the folder they were loaded from.

        Raises:
            DeltaLensError: it has no tokenizer, or is not of the kind that the objective trains.
        """
        if tokenizer is None:
            raise DeltaLensError(f"{where}: has no tokenizer; put one beside the model")
        if not can_generate(model):
            raise DeltaLensError(
                f"{where}: {type(model).__name__} is no causal language model, and only those are "
                "trained on such rows; rows of sentences with labels train others, too"
            )

    def rows(
        self, data: DataFile, loaded: LoadedModel, longest: int | None, where: Path
    ) -> tuple[Any, int]:
        """Tokenize the rows, and see that the model computes numbers on one of them.

        Args:
            data: the rows to train on.
            loaded: the model, with its tokenizer.
            longest: most tokens in a row.
            where: the model's folder, for messages.

        Returns:
            The rows as the trainer takes them, and how many were left out.

        Raises:
            DeltaLensError: the rows do not fit the model or the objective, or the model computes
                NaN or infinite logits.
        """
        whole = self.spec.loss_on == "all"
        rows, left_out = tokenized(data, loaded.tokenizer, longest, whole, loaded.model)
        check_model(loaded.model, rows[0]["input_ids"][:longest], where)
        return rows, left_out

    def options(self, longest: int | None) -> dict[str, Any]:
        """Options of the trainer's configuration that are the objective's own.

        Args:
            longest: most tokens in a row.

        Returns:
            Name -> value.
        """
        return {"max_length": longest, "dataset_kwargs": {"skip_prepare_dataset": True}}

    def trainer(self, config: Any, loaded: LoadedModel, model: Any, **given: Any) -> Any:
        """Make the trainer.

        Args:
            config: its configuration.
            loaded: the model as it was loaded, with its tokenizer.
            model: what is trained: that model, or an adapter around it.
            given: further arguments.

        Returns:
            The trainer.
        """
        import trl

        made = self._with_tokenizer(config, loaded)
        return trl.SFTTrainer(model=model, args=config, **made, **given)

    def batch_of(self, loaded: LoadedModel) -> Callable[[list[Any]], dict[str, Any]]:
        """Choose what makes a batch of rows for the model itself, without a trainer.

        Args:
            loaded: the model, with its tokenizer.

        Returns:
            A function from rows, as `rows` returned them, to the model's arguments.
        """
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        padding = padding_of(loaded.tokenizer, loaded.model)
        made: Any = DataCollatorForLanguageModeling(pad_token_id=padding)
        return lambda rows: made(rows)

    def ready(self, loaded: LoadedModel, where: Path) -> list[str]:
        """Make the model fit for the objective, before anything is tokenized.

        Args:
            loaded: the model, with its tokenizer.
            where: the model's folder, for messages.

        Returns:
            What a reader should know of it, in sentences.

        Raises:
            DeltaLensError: it cannot be made so.
        """
        return []

    def _with_tokenizer(self, config: Any, loaded: LoadedModel) -> dict[str, Any]:
        return {
            "data_collator": collator(config, loaded.tokenizer, loaded.model),
            "processing_class": loaded.tokenizer,
        }


class _Dpo(Objective):
    """Direct preference optimization, by trl."""

    def rows(
        self, data: DataFile, loaded: LoadedModel, longest: int | None, where: Path
    ) -> tuple[Any, int]:
        """See `Objective`."""
        tokenizer: Any = loaded.tokenizer
        rows, left_out = preferences(data, tokenizer, longest, loaded.model)
        text = tokenizer(str(data.rows[0].completion))["input_ids"]
        check_model(loaded.model, text[:longest], where)
        return rows, left_out

    def batch_of(self, loaded: LoadedModel) -> Callable[[list[Any]], dict[str, Any]]:
        """See `Objective`; the loss of preferences needs two models."""

        def refused(rows: list[Any]) -> dict[str, Any]:
            raise DeltaLensError(
                "dpo: the loss of preferences cannot be ranked by; choose a metric that sees no "
                "data (magnitude, synflow, random)"
            )

        return refused

    def options(self, longest: int | None) -> dict[str, Any]:
        """See `Objective`."""
        return {"max_length": longest}

    def trainer(self, config: Any, loaded: LoadedModel, model: Any, **given: Any) -> Any:
        """See `Objective`. The reference is loaded as the model was: trl would load it from
        whatever files the folder holds."""
        import trl

        needed = not (hasattr(model, "peft_config") or config.precompute_ref_log_probs)
        reference = loaded.again().model if needed and loaded.again is not None else None
        made = self._with_tokenizer(config, loaded)
        return trl.DPOTrainer(model=model, ref_model=reference, args=config, **made, **given)


class _Labeled(Objective):
    """Classification or regression of sentences, by transformers' own trainer."""

    library = "transformers"

    def check_trainable(self, model: Any, tokenizer: Any | None, where: Path) -> None:
        """See `Objective`; what has no head over sequences gets one when it is loaded."""
        if tokenizer is None:
            raise DeltaLensError(f"{where}: has no tokenizer; put one beside the model")

    def rows(
        self, data: DataFile, loaded: LoadedModel, longest: int | None, where: Path
    ) -> tuple[Any, int]:
        """See `Objective`; rows that are too long are cut."""
        model: Any = loaded.model
        numbers = _labels(model).of(data)
        examples = encode_sentences(data, loaded.tokenizer, longest, model)
        check_sentences(model, loaded.tokenizer, examples[0], where)
        labeled = zip(examples, numbers, strict=True)
        return [{**example, "labels": number} for example, number in labeled], 0

    def options(self, longest: int | None) -> dict[str, Any]:
        """See `Objective`."""
        return {"remove_unused_columns": False}

    def trainer(self, config: Any, loaded: LoadedModel, model: Any, **given: Any) -> Any:
        """See `Objective`. The trainer gets no tokenizer: it would set the model's padding token to
        the tokenizer's."""
        from transformers import Trainer

        return Trainer(model=model, args=config, data_collator=self.batch_of(loaded), **given)

    def batch_of(self, loaded: LoadedModel) -> Callable[[list[Any]], dict[str, Any]]:
        """See `Objective`."""
        base: Any = loaded.model
        kind = torch.int64 if _labels(base).names else base.dtype

        def collated(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            inputs = [{name: row[name] for name in row if name != "labels"} for row in rows]
            labels = torch.tensor([row["labels"] for row in rows], dtype=kind)
            return {**collate(inputs, base, loaded.tokenizer), "labels": labels}

        return collated

    def ready(self, loaded: LoadedModel, where: Path) -> list[str]:
        """See `Objective`."""
        model: Any = loaded.model
        names = _labels(model).names
        described = "scores"
        if names:
            named = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            f1 = f"of {names[1]}" if len(names) == 2 else "their plain mean (macro)"
            described = f"{len(names)} classes ({named}); f1 is {f1}"
        said = [f"{self.spec.objective}: the rows have {described}"]
        if (padding := give_padding(model, loaded.tokenizer, where)) is not None:
            said.append(padding)
        if head := new_head(model):
            count = sum(model.get_parameter(name).numel() for name in head)
            said.append(
                f"new head: {', '.join(head)} ({count:,} entries beside the model's own), drawn "
                "from the training's seed and trained whole"
            )
        return said


def _labels(model: Any) -> Labels:
    """What the model's head predicts; a model without one gets one when it is loaded."""
    labels = labels_of(model)
    assert labels is not None
    return labels


def objective_of(spec: TrainingSpec) -> Objective:
    """Look up what a training learns.

    Args:
        spec: the training, settled.

    Returns:
        Its objective.
    """
    kinds = {"dpo": _Dpo, **dict.fromkeys(LABELED, _Labeled)}
    return kinds.get(spec.objective, Objective)(spec)
