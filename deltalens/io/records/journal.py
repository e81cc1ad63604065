"""The journal of a study: a sealed line for each finished cell. No torch here.

A torn last line (a crash while it was written) does not count. Any other line that is not what was
written is refused by its number: without it, its cell alone would be measured again.
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

_LARGEST = sys.float_info.max
_NUMBER = Either((Real(-_LARGEST, _LARGEST), Text(among=("nan", "inf", "-inf"))))
_MEASUREMENT = Row((_NUMBER, _NUMBER, COUNT))
_NOT_NUMBERS = frozenset(("nan", "inf", "-inf"))
_ANY = Either((NAME, Whole(-(1 << 63)), Real(), FLAG, NOTHING))
_LINE: Mapping[str, Check] = {
    "setting": Fields(),
    "metrics": Named(_MEASUREMENT),
    "seconds": Real(0),
}


class Measurement(NamedTuple):
    """One number, and how sure it is."""

    value: float
    stderr: float = math.nan
    """Standard error of the value; NaN where none is known."""
    n: int = 0
    """Over how many examples or sequences; 0 where that has no meaning."""


@dataclass(frozen=True)
class Cell:
    """One finished point of a study."""

    setting: Setting
    metrics: dict[str, Measurement]
    seconds: float
    """Wall time of the cell: edit and evaluation."""


class CellKind(NamedTuple):
    """What a line of a study's journal holds."""

    columns: Mapping[str, Check]
    """Of the setting."""
    metrics: Sequence[str] = ()
    """Those that every cell has."""
    sealed: bool = True
    """Whether every line has a checksum."""

    @classmethod
    def any(cls, columns: Sequence[str], sealed: bool) -> CellKind:
        """Of a study that nothing is known of but its columns."""
        return cls(dict.fromkeys(columns, _ANY), (), sealed)


def journal_lines(cells: Sequence[Cell]) -> list[bytes]:
    """A line for each cell."""
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


def read_journal(file: Path, kind: CellKind, repair: bool = False) -> list[Cell]:
    """The finished cells, each once.

    Args:
        file: the journal.
        kind: what its lines hold.
        repair: cut a torn last line off, before anything is added.

    Raises:
        RecordError: a line is damaged, or two have the same setting and other numbers; says which,
            and what to do.
    """
    try:
        raw = read_plain(file)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from error
    whole = raw[: raw.rfind(b"\n") + 1]
    found: dict[tuple[Any, ...], tuple[int, Cell]] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        cell = parse_line(f"{file}, line {number}", line, kind)
        first, before = found.setdefault(tuple(cell.setting.values()), (number, cell))
        if repr(before.metrics) != repr(cell.metrics):
            raise RecordError(
                f"{file}: lines {first} and {number} measured the same cell, with other numbers; "
                "remove one of them"
            )
    if repair and len(whole) < len(raw):
        # A study that is refused stays as it is.
        os.truncate(file, len(whole))
    return [cell for _, cell in found.values()]


def parse_line(where: str, line: bytes, kind: CellKind) -> Cell:
    """The cell that a line of the journal holds.

    Raises:
        RecordError: it is not what was written.
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
    faults = [*Fields(_LINE).faults(fields, "")] if not _plainly_right(fields) else []
    if faults:
        return faults
    setting, metrics = fields["setting"], fields["metrics"]
    faults += Fields(kind.columns).faults(setting, "setting")
    faults += [
        f"setting.{name} is no column of this study" for name in {*setting} - {*kind.columns}
    ]
    return faults + [f"metrics.{name} is missing" for name in kind.metrics if name not in metrics]


def _plainly_right(fields: Any) -> bool:
    """What `_LINE` says, in less time: journals of 100,000 cells are read, too."""
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
                math.isfinite(x) if type(x) is float else type(x) is str and x in _NOT_NUMBERS
                for x in row[:2]
            )
            and type(row[2]) is int
            and 0 <= row[2] <= COUNT.most
            for name, row in metrics.items()
        )
    )
