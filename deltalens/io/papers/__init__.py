"""The papers' tables as data: every cell as it was printed, with its source. No torch here.

A table is one CSV file. Comment lines come first: `# source: ...`, and a `# note: ...` for each
thing that a reader should know about the table. In the header, the columns of `LABELS` name a row,
`note` says what is special about it, and every other column is a measure. A cell holds the text as
printed: `69.5(+1.2)` includes the difference that the paper states, `83.56±.07` a standard
deviation, and `-` is a dash in the paper; `body lost` stands where the text that we have lacks the
table's body, and an empty cell is not part of the paper's table. GMT and MFT print no standard
deviations: the numbers in parentheses in MFT's tables are differences to FFT. A table with the line
`# holds: settings` has words for cells, hyperparameters instead of measures; one with a line
`# model: ...` is of a single model.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from deltalens.errors import DeltaLensError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LABELS",
    "LOST",
    "PaperTable",
    "as_deviation",
    "as_number",
    "paper_table",
    "paper_tables",
]

LABELS = (
    *("setting", "model", "domain", "data"),
    *("S / D", "G / L", "method", "hyperparameter"),
)
"""The columns that name a row, where a table has them."""
LOST = "body lost"
"""Stands in a cell whose table has lost its body in the text that we have."""

_NUMBER = re.compile(
    r"(?P<value>-?\d+(\.\d+)?)(\([+-]\d+(\.\d+)?\)|±(?P<deviation>\d+(\.\d+)?|\.\d+))?"
)


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper."""

    name: str
    source: str
    """Paper, version and number of the table."""
    notes: tuple[str, ...]
    cells: pd.DataFrame
    """The table as printed: text in every column, empty where there is no cell."""
    holds: str = "numbers"
    """`numbers`; or `settings`, which are words."""
    model: str = ""
    """The model that all rows are of; empty where rows name theirs, or the paper does not."""

    @property
    def measures(self) -> list[str]:
        """The columns that hold numbers or settings, in the paper's order."""
        return [name for name in self.cells.columns if name not in (*LABELS, "note")]


def paper_tables() -> list[str]:
    """List the tables.

    Returns:
        Their names, sorted.
    """
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".csv") for file in files if file.name.endswith(".csv"))


def paper_table(name: str) -> PaperTable:
    """Read a table.

    Args:
        name: its name: `gmt_tab1`, ...

    Returns:
        The table.

    Raises:
        DeltaLensError: there is no table of this name.
    """
    import pandas as pd

    if name not in paper_tables():
        raise DeltaLensError(f"no paper's table {name!r}; choose from {', '.join(paper_tables())}")
    lines = resources.files(__name__).joinpath(f"{name}.csv").read_text("utf-8").splitlines()
    comments = [line.removeprefix("# ").partition(": ") for line in lines if line.startswith("#")]
    cells = pd.read_csv(
        io.StringIO("\n".join(line for line in lines if not line.startswith("#"))),
        dtype=str,
        keep_default_na=False,
    )
    (source,) = (text for kind, _, text in comments if kind == "source")
    notes = tuple(text for kind, _, text in comments if kind == "note")
    (holds,) = [text for kind, _, text in comments if kind == "holds"] or ["numbers"]
    (model,) = [text for kind, _, text in comments if kind == "model"] or [""]
    return PaperTable(name, source, notes, cells, holds, model)


def as_number(cell: str) -> float:
    """Convert a printed cell to a number.

    Args:
        cell: the text as printed.

    Returns:
        The number, without the difference in parentheses and without the standard deviation; NaN
        for a dash, an empty cell or a lost one.

    Raises:
        DeltaLensError: it is none of these.
    """
    match = _match(cell)
    return float(match["value"]) if match else math.nan


def as_deviation(cell: str) -> float:
    """Convert the standard deviation of a printed cell to a number.

    Args:
        cell: the text as printed.

    Returns:
        The deviation: 0.07 of `83.56±.07`; NaN if the paper prints none.

    Raises:
        DeltaLensError: it is no cell of a paper's table.
    """
    match = _match(cell)
    return float(match["deviation"]) if match and match["deviation"] else math.nan


def _match(cell: str) -> re.Match[str] | None:
    if cell in ("", "-", LOST):
        return None
    match = _NUMBER.fullmatch(cell)
    if not match:
        raise DeltaLensError(f"{cell!r}: not a cell of a paper's table")
    return match
