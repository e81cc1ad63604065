"""Tables on a terminal: whatever its width, no number is cut."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from deltalens.io.escaping import plain, plain_lines
from deltalens.io.tables import Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table as RichTable
    from rich.text import Text

__all__ = ["FittingTable"]

_NAME, _HEAD = 16, 8
"""Characters that a row's name, and a line of a head, have at least before they are broken."""


class FittingTable:
    """A table for the terminal: names to the left, numbers to the right.

    Where it is too wide, first the heads are set in several lines, then the rows' names, and then
    the columns are spread over several tables, each with the rows' names. Its legend stands below.
    """

    def __init__(self, table: Table) -> None:
        heads = tuple(plain_lines(head) for head in table.columns)
        rows = tuple(tuple(map(plain, row)) for row in table.rows)
        self.table = Table(plain(table.title), heads, rows)
        self.legend = tuple(map(plain, table.legend))

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RichTable | Text]:
        from rich.text import Text

        def fits(table: Table) -> bool:
            return _width(table, console, options) <= options.max_width

        table = self.table
        if not fits(table):
            table = _narrow_heads(table)
        if not fits(table):
            table = _narrow_names(table, max(_NAME, options.max_width // 3))
        for part in _parts(table, fits):
            shown = part
            if len(part.title) > _width(part, console, options):
                # In the table it would be broken where the table ends.
                yield Text(part.title, style="table.title", overflow="fold")
                shown = Table("", part.columns, part.rows)
            yield _made(shown, wraps=not fits(part))
        if self.legend:
            yield from (Text(line, overflow="fold") for line in (*self.legend, ""))


def _made(table: Table, wraps: bool = False) -> RichTable:
    """For rich.

    Args:
        table: as it is to be.
        wraps: a single number is wider than the terminal: rather in two lines than cut.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(
        box=SIMPLE_HEAD,
        title=Text(table.title) if table.title else None,
        title_justify="left",
        pad_edge=False,
    )
    for place, name in enumerate(table.columns):
        side = "right" if place else "left"
        made.add_column(Text(name), justify=side, no_wrap=not wraps, overflow="fold")  # type: ignore[arg-type]
    for row in table.rows:
        made.add_row(*map(Text, row))
    return made


def _width(table: Table, console: Console, options: ConsoleOptions) -> int:
    """How wide it is if nothing is broken; the title is broken wherever it has to be."""
    from rich.measure import Measurement

    bare = _made(Table("", table.columns, table.rows))
    return Measurement.get(console, options.update(width=1 << 20), bare).maximum


def _narrow_heads(table: Table) -> Table:
    """Heads as wide as their column's cells, or as their longest word."""
    columns = []
    for place, head in enumerate(table.columns):
        cells = max((len(line) for row in table.rows for line in row[place].split("\n")), default=0)
        longest = max(map(len, head.split()), default=0)
        columns.append(
            "\n".join(
                words
                for line in head.split("\n")
                for words in _wrapped(line.split(" "), max(cells, longest, _HEAD), " ")
            )
        )
    return Table(table.title, tuple(columns), table.rows)


def _narrow_names(table: Table, width: int) -> Table:
    """The names of rows (tensors, files) broken where their parts meet."""
    rows = tuple(
        ("\n".join(_wrapped(re.split(r"(?<=[./_ -])", row[0]), width, "")), *row[1:])
        for row in table.rows
    )
    return Table(table.title, table.columns, rows)


def _wrapped(parts: Sequence[str], width: int, between: str) -> Iterable[str]:
    """Parts joined to lines no wider than this; a part that is wider is folded."""
    lines = [""]
    for part in parts:
        joined = lines[-1] + between + part if lines[-1] else part
        if len(joined.rstrip()) <= width:
            lines[-1] = joined
        else:
            lines += textwrap.wrap(part, width, drop_whitespace=False) or [part]
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _parts(table: Table, fits: Callable[[Table], bool]) -> Iterator[Table]:
    """The table, or its columns spread over several that fit, each with at least one."""
    start, title = 1, table.title
    while start < len(table.columns) or start == 1:
        stop = max(start + 1, len(table.columns))
        while stop > start + 1 and not fits(_columns(table, start, stop, title)):
            stop -= 1
        yield _columns(table, start, stop, title)
        start, title = stop, ""


def _columns(table: Table, start: int, stop: int, title: str) -> Table:
    """The names, and some of the columns."""
    kept = (0, *range(start, min(stop, len(table.columns))))
    rows = tuple(tuple(row[place] for place in kept) for row in table.rows)
    return Table(title, tuple(table.columns[place] for place in kept), rows)
