"""The papers' tables as data: every cell as it was printed, with its source. No torch here.

A table is one CSV file. Lines that begin with `#` come first: `# source: ...`, and a `# note: ...`
for everything a reader should know about it. Then a header: the columns of `LABELS` name a row,
`note` says what is special about it, and every other column is a measure. A cell is the text as
printed (`69.5(+1.2)`: with the difference that the paper gives; `-`: the paper's own dash); an
empty one lies outside the paper's table. No table of these papers prints a deviation: what stands
beside MFT's scores is the distance to FFT.
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
    """Paper, version and table."""
    notes: tuple[str, ...]
    cells: pd.DataFrame
    """The table as printed: text in every column, empty where there is no cell."""

    @property
    def measures(self) -> list[str]:
        """The columns that hold numbers, in the paper's order."""
        return [name for name in self.cells.columns if name not in (*LABELS, "note")]


def paper_tables() -> list[str]:
    """The names of the tables there are."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".csv") for file in files if file.name.endswith(".csv"))


def paper_table(name: str) -> PaperTable:
    """Read a table by its name: `gmt_tab1`, ...

    Raises:
        DeltaLensError: there is none of that name.
    """
    import pandas as pd

    if name not in paper_tables():
        raise DeltaLensError(f"no table {name!r} of a paper; there are {', '.join(paper_tables())}")
    lines = resources.files(__name__).joinpath(f"{name}.csv").read_text("utf-8").splitlines()
    said = [line.removeprefix("# ").partition(": ") for line in lines if line.startswith("#")]
    cells = pd.read_csv(
        io.StringIO("\n".join(line for line in lines if not line.startswith("#"))),
        dtype=str,
        keep_default_na=False,
    )
    (source,) = (text for kind, _, text in said if kind == "source")
    return PaperTable(name, source, tuple(text for kind, _, text in said if kind == "note"), cells)


def as_number(cell: str) -> float:
    """The number in a printed cell; NaN for a dash or nothing.

    Raises:
        DeltaLensError: neither of these.
    """
    if cell in ("", "-"):
        return math.nan
    found = _NUMBER.fullmatch(cell)
    if not found:
        raise DeltaLensError(f"{cell!r}: not a cell of a paper's table")
    return float(found["value"])
