"""The texts that fidelity is measured on: sampled once, and kept in the study for every later call
of it."""

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
    "KeptTexts",
    "Progress",
    "fidelity_on",
    "vocabulary_of",
]


class Progress(Protocol):
    """Who is told what is being made ready."""

    @property
    def stage(self) -> Callable[[str, int | None], None]:
        """A stage begins: its name, and its number of steps if known."""
        ...

    @property
    def advance(self) -> Callable[[int], None]:
        """So many steps of the stage are done."""
        ...


@dataclass(frozen=True, kw_only=True)
class FidelityTexts:
    """The texts that fidelity is measured on when there is no data."""

    sequences: int = 64
    """How many are sampled from the fine-tune."""
    new_tokens: int = 128
    """Tokens sampled per text."""
    seed: int = 0
    """Of the sampling."""

    def check(self) -> None:
        """Refuse what is no text to compare on.

        Raises:
            DeltaLensError: no text, or of a single token.
        """
        if self.sequences < 1 or self.new_tokens < 2:
            raise DeltaLensError(f"fidelity needs a text of at least 2 tokens: {self}")

    @property
    def identity(self) -> list[int]:
        """Which texts, as JSON values."""
        return [self.sequences, self.new_tokens, self.seed]


@dataclass(frozen=True)
class KeptTexts:
    """Where the texts of a study are kept."""

    folder: Path
    """Of the study."""
    again: bool = False
    """Those that lie there are used again."""


def fidelity_on(
    kept: KeptTexts, want: FidelityTexts, loaded: LoadedModel, watch: Progress, called: str
) -> Fidelity:
    """Fidelity to a model, on texts of its own.

    Args:
        kept: where they are, or will be.
        want: which texts.
        loaded: the model.
        watch: told of stages.
        called: what the model is called there.

    Raises:
        RecordError: the texts that are kept are damaged.
    """
    if kept.again and has_texts(kept.folder):
        texts = read_texts(kept.folder, vocabulary_of(loaded.model))
    else:
        watch.stage(f"sampling texts from {called}", want.sequences)
        texts = sample_texts(
            loaded.model,
            want.sequences,
            want.new_tokens,
            want.seed,
            watch.advance,
            ends_of(loaded.tokenizer, loaded.model).stops,
        )
        write_texts(kept.folder, texts)
    watch.stage(f"{called}'s own answers", len(texts))
    return Fidelity(loaded.model, texts, watch.advance)


def vocabulary_of(model: nn.Module) -> int:
    """How many tokens a model knows; 0 where its configuration does not say."""
    config: Any = model.config
    return int(getattr(config.get_text_config(), "vocab_size", None) or 0)
