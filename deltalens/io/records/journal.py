"""The journal of a study: one sealed line per finished cell. No torch here.

A torn last line (from a crash while it was being written) is ignored. Any other damaged line is an
error that names the line: once it is removed, only its cell is measured again.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deltalens.errors import RecordError
from deltalens.io.checksum import parse_sealed, sealed
from deltalens.io.files import read_plain
from deltalens.io.plain_json import encode_finite
from deltalens.io.records.schema import (
    COUNT,
    FLAG,
    NAME,
    NOTHING,
    Check,
    Either,
    Fields,
    Named,
    Real,
    Row,
    Text,
    Whole,
    refuse,
)

__all__ = [
    "ANY_SCALAR",
    "JOURNAL",
    "Cell",
    "CellKind",
    "Measurement",
    "Setting",
    "journal_lines",
    "parse_line",
    "read_journal",
]

JOURNAL = "cells.jsonl"
Setting = dict[str, Any]
"""What identifies a cell: its values in the columns of the study's table, as JSON values."""

_LARGEST = sys.float_info.max
_NUMBER = Either((Real(-_LARGEST, _LARGEST), Text(among=("nan", "inf", "-inf"))))
_MEASUREMENT = Row((_NUMBER, _NUMBER, COUNT))
_NOT_FINITE = frozenset(("nan", "inf", "-inf"))
ANY_SCALAR = Either((NAME, Whole(-(1 << 63)), Real(), FLAG, NOTHING))
_LINE: Mapping[str, Check] = {
    "setting": Fields(),
    "metrics": Named(_MEASUREMENT),
    "seconds": Real(0),
}


class Measurement(NamedTuple):
    """A measured number, with its standard error."""

    value: float
    stderr: float = math.nan
    """Standard error of the value; NaN if unknown."""
    n: int = 0
    """Number of examples or sequences measured; 0 if not applicable."""


@dataclass(frozen=True)
class Cell:
    """A finished cell of a study."""

    setting: Setting
    metrics: dict[str, Measurement]
    seconds: float
    """Wall time of the cell in seconds: edit and evaluation."""


class CellKind(NamedTuple):
    """What a line of a study's journal must contain."""

    columns: Mapping[str, Check]
    """The setting's columns."""
    metrics: Sequence[str] = ()
    """Metrics that every cell must have."""
    sealed: bool = True
    """Whether every line must have a checksum."""

    @classmethod
    def any(cls, columns: Sequence[str], sealed: bool) -> CellKind:
        """Describe the cells of a study of an unknown kind.

        Args:
            columns: the setting's columns.
            sealed: whether every line must have a checksum.

        Returns:
            A kind that allows any scalar in these columns, and any metrics.
        """
        return cls(dict.fromkeys(columns, ANY_SCALAR), (), sealed)


def journal_lines(cells: Sequence[Cell]) -> list[bytes]:
    """Encode cells as lines of a journal.

    Returns:
        One line per cell, with the line end.
    """
    return [
        json.dumps(
            sealed(
                {
                    "setting": cell.setting,
                    "metrics": encode_finite(cell.metrics, str),
                    "seconds": round(cell.seconds, 4),
                }
            )
        ).encode()
        + b"\n"
        for cell in cells
    ]


def whole_lines(file: Path) -> tuple[list[bytes], bool]:
    """Read the lines of a file that grows by whole lines.

    Args:
        file: the file; it may be missing.

    Returns:
        The lines without their ends; and whether a torn one, left out, comes after them.

    Raises:
        RecordError: it cannot be read.
    """
    try:
        *lines, rest = read_plain(file).split(b"\n")
    except FileNotFoundError:
        return [], False
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
    return lines, bool(rest)


def cut_torn(file: Path, lines: Sequence[bytes]) -> None:
    """Cut off a torn last line, so that lines can be appended.

    Args:
        file: the file.
        lines: its whole lines, as `whole_lines` returned them.
    """
    os.truncate(file, sum(len(line) + 1 for line in lines))


def read_journal(file: Path, kind: CellKind, repair: bool = False) -> list[Cell]:
    """Read the finished cells of a study.

    Args:
        file: the journal; it may be missing.
        kind: what its lines must contain.
        repair: cut off a torn last line, so that lines can be appended.

    Returns:
        The cells in the order of the journal, each once.

    Raises:
        RecordError: a line is damaged, or two lines have the same setting and different numbers;
            the message names the lines and says what to do.
    """
    lines, torn = whole_lines(file)
    cells: dict[tuple[Any, ...], tuple[int, Cell]] = {}
    for number, line in enumerate(lines, 1):
        cell = parse_line(f"{file}, line {number}", line, kind)
        first, before = cells.setdefault(tuple(cell.setting.values()), (number, cell))
        if repr(before.metrics) != repr(cell.metrics):
            raise RecordError(
                f"{file}: lines {first} and {number} have different numbers for the same cell; "
                "remove one of them"
            )
    if repair and torn:
        # Only now: a study that is refused must stay as it is.
        cut_torn(file, lines)
    return [cell for _, cell in cells.values()]


def parse_line(where: str, line: bytes, kind: CellKind) -> Cell:
    """Parse and check a line of a journal.

    Args:
        where: file and line number, for messages.
        line: the line.
        kind: what it must contain.

    Returns:
        The cell.

    Raises:
        RecordError: the line is damaged, or does not contain what it must.
    """
    hint = "remove the line, and the same call measures its cell again"
    try:
        fields = parse_sealed(where, line, kind.sealed)
        refuse(where, [*_faults(fields, kind)])
    except RecordError as error:
        raise RecordError(f"{error}; {hint}") from error
    setting = fields["setting"]
    return Cell(
        {
            name: float(setting[name]) if isinstance(check, Real) else setting[name]
            for name, check in kind.columns.items()
        },
        {name: Measurement(float(v), float(e), n) for name, (v, e, n) in fields["metrics"].items()},
        float(fields["seconds"]),
    )


def _faults(fields: Any, kind: CellKind) -> list[str]:
    faults = [*Fields(_LINE).faults(fields, "")] if not _is_valid(fields) else []
    if faults:
        return faults
    setting, metrics = fields["setting"], fields["metrics"]
    faults += Fields(kind.columns).faults(setting, "setting")
    faults += [
        f"setting.{name} is not a column of this study" for name in {*setting} - {*kind.columns}
    ]
    return faults + [f"metrics.{name} is missing" for name in kind.metrics if name not in metrics]


def _is_valid(fields: Any) -> bool:
    """The checks of `_LINE`, but faster: a journal may have 100,000 cells."""
    if not isinstance(fields, dict) or type(fields.get("seconds")) is not float:
        return False
    metrics = fields.get("metrics")
    return (
        fields["seconds"] >= 0
        and isinstance(fields.get("setting"), dict)
        and isinstance(metrics, dict)
        and all(
            len(name) <= NAME.longest
            and type(row) is list
            and len(row) == 3
            and all(
                math.isfinite(x) if type(x) is float else type(x) is str and x in _NOT_FINITE
                for x in row[:2]
            )
            and type(row[2]) is int
            and 0 <= row[2] <= COUNT.most
            for name, row in metrics.items()
        )
    )
