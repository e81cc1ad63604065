"""Tables as CSV, in a link that needs no file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from urllib.parse import quote

from deltalens.io.escaping import plain_cell
from deltalens.io.tables import Table

__all__ = ["as_csv", "as_link"]


def as_csv(tables: Iterable[Table]) -> str:
    """Write tables as CSV.

    Args:
        tables: one after the other, an empty line between them.

    Returns:
        The text. No cell is a formula to a spreadsheet.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for at, table in enumerate(tables):
        if at:
            writer.writerow([])
        writer.writerow([plain_cell(" ".join(head.split())) for head in table.columns])
        writer.writerows([plain_cell(cell) for cell in row] for row in table.rows)
    return text.getvalue()


def as_link(text: str) -> str:
    """Put CSV into an address.

    Args:
        text: of the file.

    Returns:
        A `data:` address.
    """
    return f"data:text/csv;charset=utf-8,{quote(text, safe=',./:-_()*')}"
