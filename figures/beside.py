"""A study's numbers beside a paper's: both, and their difference, row by row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deltalens.figures.paper_points import plain_words
from deltalens.figures.tables import BESIDE, NOTHING, Block, Entry, printed_entry

if TYPE_CHECKING:
    import pandas as pd

    from deltalens.io.records import StudyRecord

__all__ = [
    "NO_BENCHMARK",
    "Pair",
    "beside_block",
    "beside_note",
    "beside_rows",
    "is_called",
    "is_foreign",
    "models_beside",
]

NO_BENCHMARK = (
    "No data of this study has the name of one of the paper's benchmarks, so no difference is "
    "shown."
)
_WHOSE = "whose"


class Pair(NamedTuple):
    """A column of both: the study's cells, and the paper's."""

    head: str
    ours: Sequence[Entry]
    printed: Sequence[Entry]
    comparable: bool = True
    """Whether a difference means anything."""
    form: str = "+.2f"
    """Of a difference."""


def beside_block(
    title: str, labels: Sequence[str], rows: Sequence[Sequence[str]], pairs: Sequence[Pair]
) -> Block | None:
    """Set columns of a study beside those of a paper: three lines for each row.

    Args:
        title: above the block.
        labels: heads of the rows' labels.
        rows: their labels.
        pairs: the columns, with a cell for each row.

    Returns:
        The block; None if the paper has no number in it.
    """
    if not any(math.isfinite(entry.value) for pair in pairs for entry in pair.printed):
        return None
    lines = [
        (*map(Entry, (*row, whose)), *(of_pair(pair, place) for pair in pairs))
        for place, row in enumerate(rows)
        for whose, of_pair in _LINES.items()
    ]
    heads = (*labels, _WHOSE, *(pair.head for pair in pairs))
    return Block("study", title, heads, tuple(lines), len(labels) + 1, len(labels))


def beside_rows(
    title: str,
    own: Block,
    names: Mapping[tuple[str, ...], str],
    columns: Mapping[int, str],
    cells: pd.DataFrame,
    form: str = "+.1f",
) -> Block | None:
    """Set the rows of a study's block beside a paper's.

    Args:
        title: above the block.
        own: the study's.
        names: what its first columns name a row -> the paper's `method`.
        columns: index of a column of `own` -> the paper's column.
        cells: the paper's rows, one for each `method`.
        form: of a difference.

    Returns:
        The block; None if they have no row and column in common.
    """
    printed = {str(row["method"]): row for _, row in cells.iterrows()}
    width = len(next(iter(names), ()))
    keys = [tuple(entry.text for entry in row[:width]) for row in own.rows]
    common = [place for place, key in enumerate(keys) if names.get(key) in printed]
    pairs = [
        Pair(
            name,
            [own.rows[place][index] for place in common],
            [printed_entry(str(printed[names[keys[place]]][name])) for place in common],
            form=form,
        )
        for index, name in columns.items()
    ]
    return beside_block(title, own.heads[:width], [keys[place] for place in common], pairs)


def is_foreign(records: Iterable[StudyRecord], model: str) -> bool:
    """Tell whether a model of a paper's is none of the studies'.

    Args:
        records: of the studies.
        model: the paper's; empty where its table does not say.

    Returns:
        Whether no model, base or fine-tune of theirs is called so.
    """
    keys = ("model", "base", "ft")
    names = {Path(str(record.facts.get(key) or "")).name for record in records for key in keys}
    return bool(model) and not any(is_called(name, model) for name in names)


def models_beside(own: str, cells: pd.DataFrame) -> list[str]:
    """Choose the paper's models to stand beside a study.

    Args:
        own: the name of the study's model; may be empty.
        cells: rows of the paper's table.

    Returns:
        The study's own model if the rows have it, else all of theirs.
    """
    models = [str(model) for model in dict.fromkeys(cells["model"])]
    return [model for model in models if is_called(own, model)] or models


def is_called(own: str, printed: str) -> bool:
    """Tell whether a model is one of a paper's: `Meta-Llama-3-8B` is LLAMA3-8B, and
    `deepseek-coder-6.7b-base` is DEEPSEEK-CODER-BASE-6.7B.

    Args:
        own: the model's name; may be empty.
        printed: the paper's.

    Returns:
        Whether it has the letters of the paper's name, or all its words.
    """
    words = [{plain_words(word) for word in re.split("[-_ ]", name)} for name in (printed, own)]
    return bool(own) and (plain_words(printed) in plain_words(own) or words[0] <= words[1])


def beside_note(blocks: Sequence[Block]) -> str:
    """Say what the blocks beside a paper's show, or why there is none.

    Args:
        blocks: those that there are.

    Returns:
        A sentence.
    """
    if blocks:
        return (
            f"{BESIDE}: rows and benchmarks that both have, by the names of the data; the "
            "difference is this study's number less the paper's. In brackets: what the paper prints"
            " as the distance to plain fine-tuning."
        )
    return NO_BENCHMARK


def _difference(pair: Pair, place: int) -> Entry:
    apart = pair.ours[place].value - pair.printed[place].value
    if not (pair.comparable and math.isfinite(apart)):
        return Entry(NOTHING)
    return Entry(f"{apart:{pair.form}}" if apart else "0", apart)


_LINES: dict[str, Callable[[Pair, int], Entry]] = {
    "this study": lambda pair, place: replace(pair.ours[place], best=False),
    "the paper": lambda pair, place: pair.printed[place],
    "difference": _difference,
}
