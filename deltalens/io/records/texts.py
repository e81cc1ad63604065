"""The texts on which a study measures fidelity, stored in its folder so that it can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.io.records.folder import Manifest
from deltalens.io.records.schema import Fields, Items, Whole, require

__all__ = ["TEXTS", "has_texts", "read_texts", "write_texts"]

TEXTS = Manifest("texts", "texts.json", Fields({"texts": Items(Items(Whole(), 1), 1)}))


def has_texts(folder: Path) -> bool:
    """Tell whether a study's folder holds texts.

    Returns:
        Whether the file exists.
    """
    return (folder / TEXTS.name).exists()


def write_texts(folder: Path, texts: Sequence[Sequence[int]]) -> None:
    """Store texts in a study's folder.

    Args:
        folder: the study's folder.
        texts: token ids of each text.

    Raises:
        DeltaLensError: the folder is not writable.
    """
    TEXTS.write(folder, {"texts": texts})


def read_texts(folder: Path, vocabulary: int = 0) -> list[list[int]]:
    """Read the texts in a study's folder.

    Args:
        folder: the study's folder.
        vocabulary: the model's number of tokens; 0 if unknown.

    Returns:
        Token ids of each text.

    Raises:
        RecordError: there are no texts, they are damaged, or the model does not know a token.
    """
    record = TEXTS.read(folder)
    if vocabulary:
        known_tokens = Items(Items(Whole(0, vocabulary - 1), 1), 1)
        require(folder / TEXTS.name, record, {"texts": known_tokens})
    texts: list[list[int]] = record["texts"]
    return texts
