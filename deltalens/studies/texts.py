"""The texts that fidelity is measured on: sampled once, and kept in the study for every later call
of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from deltalens.io.records import StudyFolder, read_manifest, write_manifest
from deltalens.io.records.schema import Items, Whole, require
from deltalens.scoring.fidelity import Fidelity, sample_texts
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.turns import ends_of
from deltalens.studies.drop_asked import FidelityTexts
from deltalens.studies.engine import StudyWatch

__all__ = ["TEXTS", "fidelity_of", "read_texts", "vocabulary_of"]

TEXTS = "texts.json"


def fidelity_of(
    loaded: LoadedModel, want: FidelityTexts, folder: StudyFolder, watch: StudyWatch, model: str
) -> Fidelity:
    """Fidelity to a model, on texts of its own.

    Args:
        loaded: the model.
        want: which texts.
        folder: of the study; the texts that it holds are used again.
        watch: told of stages.
        model: what it is called there.

    Raises:
        RecordError: the texts that are kept are damaged.
    """
    file = folder.path / TEXTS
    if folder.cells and file.exists():
        texts = read_texts(folder.path, vocabulary_of(loaded.model))
    else:
        watch.stage(f"sampling texts from {model}", want.sequences)
        texts = sample_texts(
            loaded.model,
            want.sequences,
            want.new_tokens,
            want.seed,
            watch.advance,
            ends_of(loaded.tokenizer, loaded.model).stops,
        )
        write_manifest(file, {"texts": texts})
    watch.stage(f"{model}'s own answers", len(texts))
    return Fidelity(loaded.model, texts, watch.advance)


def read_texts(folder: Path, vocabulary: int = 0) -> list[list[int]]:
    """The texts that a study keeps, as token ids.

    Args:
        folder: of the study.
        vocabulary: tokens that the model knows; 0 where that is not known.

    Raises:
        RecordError: there are none, or they are damaged.
    """
    record = read_manifest(folder, TEXTS, "texts")
    token = Whole(0, vocabulary - 1) if vocabulary else Whole()
    require(folder / TEXTS, record, {"texts": Items(Items(token, 1), 1)})
    texts: list[list[int]] = record["texts"]
    return texts


def vocabulary_of(model: nn.Module) -> int:
    """How many tokens a model knows; 0 where its configuration does not say."""
    config: Any = model.config
    return int(getattr(config.get_text_config(), "vocab_size", None) or 0)
