"""The cells of a study that failed: one sealed line per failure, in a file beside the journal. No
torch here.

The journal itself has finished cells only, so that whoever reads it needs no second kind of line.
Of several lines about a cell the last one counts; it has no reason once the cell is finished. A
torn last line is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.checksum import parse_sealed, sealed
from deltalens.io.records.journal import ANY_SCALAR, Setting, cut_torn, whole_lines
from deltalens.io.records.schema import NOTHING, Check, Either, Fields, Text, refuse

__all__ = ["FAILURES", "Failure", "read_failures"]

FAILURES = "failures.jsonl"
_LONGEST = 4_000
"""Characters of a reason."""
_LINE: Mapping[str, Check] = {"setting": Fields(), "reason": Either((Text(_LONGEST), NOTHING))}


@dataclass(frozen=True)
class Failure:
    """A cell that failed."""

    setting: Setting
    """The cell's setting; or, if several cells are measured together, what they have in common."""
    reason: str | None
    """Why; None in a line of the file: it has been measured since."""

    def line(self) -> bytes:
        """Encode the failure as a line of the file.

        Returns:
            The line, with its end.
        """
        # A lone surrogate, as in a path of undecodable bytes, could not be read again.
        reason = self.reason and self.reason[:_LONGEST].encode(errors="replace").decode()
        return json.dumps(sealed({"setting": self.setting, "reason": reason})).encode() + b"\n"


def read_failures(file: Path, columns: Sequence[str], repair: bool = False) -> list[Failure]:
    """Read which cells of a study failed.

    Args:
        file: the file; it may be missing.
        columns: of a cell's setting.
        repair: cut off a torn last line, so that lines can be appended.

    Returns:
        The failed cells, in the order in which they failed last.

    Raises:
        RecordError: a line is damaged.
    """
    lines, torn = whole_lines(file)
    latest: dict[str, Failure] = {}
    for number, line in enumerate(lines, 1):
        failure = _parse(f"{file}, line {number}", line, columns)
        key = repr(sorted(failure.setting.items()))
        latest.pop(key, None)
        if failure.reason is not None:
            latest[key] = failure
    if repair and torn:
        cut_torn(file, lines)
    return list(latest.values())


def _parse(where: str, line: bytes, columns: Sequence[str]) -> Failure:
    try:
        fields: Any = parse_sealed(where, line, True)
        refuse(where, [*Fields(_LINE).faults(fields, "")])
        setting = fields["setting"]
        allowed = Fields(known=dict.fromkeys(columns, ANY_SCALAR))
        unknown = [
            f"setting.{name} is not a column of this study" for name in {*setting} - {*columns}
        ]
        refuse(where, [*allowed.faults(setting, "setting"), *unknown])
    except RecordError as error:
        raise RecordError(f"{error}; remove the line: it says only why a cell failed") from error
    return Failure(setting, fields["reason"])
