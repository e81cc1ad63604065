"""The papers' tables as data: every cell as it was printed, with its source. No torch here.

A table is one CSV file. Comment lines come first: `# source: ...`, and a `# note: ...` for each
thing that a reader should know about the table. In the header, the columns of `LABELS` name a row,
`note` says what is special about it, and every other column is a measure. A cell holds the text as
printed: `69.5(+1.2)` includes the difference that the paper states, and `-` is a dash in the paper;
an empty cell is not part of the paper's table. None of these papers prints standard deviations: the
numbers in parentheses in MFT's tables are differences to FFT.
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

__all__ = ["LABELS", "PaperTable", "as_number", "paper_table", "paper_tables"]

LABELS = ("setting", "model", "domain", "method")
"""The columns that name a row, where a table has them."""

_NUMBER = re.compile(r"(?P<value>-?\d+(\.\d+)?)(\([+-]\d+(\.\d+)?\))?")


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper."""

    name: str
    source: str
    """Paper, version and number of the table."""
    notes: tuple[str, ...]
    cells: pd.DataFrame
    """The table as printed: text in every column, empty where there is no cell."""

    @property
    def measures(self) -> list[str]:
        """The columns that hold numbers, in the paper's order."""
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
    return PaperTable(name, source, notes, cells)


def as_number(cell: str) -> float:
    """Convert a printed cell to a number.

    Args:
        cell: the text as printed.

    Returns:
        The number, without the difference in parentheses; NaN for a dash or an empty cell.

    Raises:
        DeltaLensError: it is none of these.
    """
    if cell in ("", "-"):
        return math.nan
    match = _NUMBER.fullmatch(cell)
    if not match:
        raise DeltaLensError(f"{cell!r}: not a cell of a paper's table")
    return float(match["value"])
