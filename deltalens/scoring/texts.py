"""The texts on which fidelity is measured: sampled once, and stored with the study, so that it can
be resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from deltalens.errors import DeltaLensError
from deltalens.io.records import has_texts, read_texts, write_texts
from deltalens.scoring.fidelity import Fidelity, sample_texts
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.turns import ends_of

__all__ = [
    "FidelityTexts",
    "Progress",
    "Report",
    "StoredTexts",
    "fidelity_on",
    "vocabulary_of",
]

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all) of the running cell."""


class Progress(Protocol):
    """Receives the progress of preparations."""

    @property
    def stage(self) -> Callable[[str, int | None], None]:
        """Called when a stage starts, with its title and its number of steps (None: unknown)."""
        ...

    @property
    def advance(self) -> Callable[[int], None]:
        """Called with the number of further steps that are done."""
        ...


@dataclass(frozen=True, kw_only=True)
class FidelityTexts:
    """The texts, sampled from the fine-tune, on which fidelity is measured."""

    sequences: int = 64
    """Number of texts."""
    new_tokens: int = 128
    """Tokens sampled per text."""
    seed: int = 0
    """Seed of the sampling."""

    def check(self) -> None:
        """Refuse numbers that leave nothing to compare.

        Raises:
            DeltaLensError: there is no text, or texts have a single token.
        """
        if self.sequences < 1 or self.new_tokens < 2:
            raise DeltaLensError(
                "fidelity needs at least 1 text of 2 tokens; requested are "
                f"{self.sequences} texts of {self.new_tokens} tokens"
            )

    @property
    def identity(self) -> list[int]:
        """What identifies the texts in a study's specification, as JSON values."""
        return [self.sequences, self.new_tokens, self.seed]


@dataclass(frozen=True)
class StoredTexts:
    """Where the texts of a study are stored."""

    folder: Path
    """The study's folder."""
    reuse: bool = False
    """Whether to use texts that are stored there already."""


def fidelity_on(
    stored: StoredTexts, texts: FidelityTexts, loaded: LoadedModel, watch: Progress, label: str
) -> Fidelity:
    """Prepare measuring fidelity to a model, on texts sampled from it.

    Args:
        stored: where the texts are, or will be, stored.
        texts: which texts to sample, if there are none.
        loaded: the model.
        watch: receives the progress.
        label: how the model is called in messages: "the fine-tune".

    Returns:
        The comparison with the model.

    Raises:
        RecordError: the stored texts are damaged.
        DeltaLensError: texts cannot be sampled from the model, or be written.
    """
    if stored.reuse and has_texts(stored.folder):
        tokens = read_texts(stored.folder, vocabulary_of(loaded.model))
    else:
        watch.stage(f"sampling texts from {label}", texts.sequences)
        tokens = sample_texts(
            loaded.model,
            texts.sequences,
            texts.new_tokens,
            texts.seed,
            watch.advance,
            ends_of(loaded.tokenizer, loaded.model).stops,
        )
        write_texts(stored.folder, tokens)
    watch.stage(f"predictions of {label}", len(tokens))
    return Fidelity(loaded.model, tokens, watch.advance)


def vocabulary_of(model: nn.Module) -> int:
    """Get the size of a model's vocabulary.

    Returns:
        A number of tokens; 0 if the configuration does not say.
    """
    config: Any = model.config
    return int(getattr(config.get_text_config(), "vocab_size", None) or 0)
