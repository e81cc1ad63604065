"""The texts that a study measures fidelity on, kept in its folder for every later call of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.io.records.folder import Manifest
from deltalens.io.records.schema import Fields, Items, Whole, require

__all__ = ["TEXTS", "has_texts", "read_texts", "write_texts"]

TEXTS = Manifest("texts", "texts.json", Fields({"texts": Items(Items(Whole(), 1), 1)}))


def has_texts(folder: Path) -> bool:
    """Whether texts are kept in the folder of a study."""
    return (folder / TEXTS.name).exists()


def write_texts(folder: Path, texts: Sequence[Sequence[int]]) -> None:
    """Keep texts in the folder of a study, as token ids."""
    TEXTS.write(folder, {"texts": texts})


def read_texts(folder: Path, vocabulary: int = 0) -> list[list[int]]:
    """The texts that a study keeps, as token ids.

    Args:
        folder: of the study.
        vocabulary: tokens that the model knows; 0 where that is not known.

    Raises:
        RecordError: there are none, or they are damaged.
    """
    record = TEXTS.read(folder)
    if vocabulary:
        known = Items(Items(Whole(0, vocabulary - 1), 1), 1)
        require(folder / TEXTS.name, record, {"texts": known})
    texts: list[list[int]] = record["texts"]
    return texts
