"""The errors deltalens raises for bad input: one clear message, with the case in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "DataError",
    "DeltaLensError",
    "PairingError",
    "RecordError",
    "several",
]

SHOWN = 20
_LONGEST = 500


class DeltaLensError(Exception):
    """Something the caller gave cannot be used; the message says what, where and what to do."""


class CheckpointError(DeltaLensError):
    """A checkpoint cannot be read, or cannot be written."""


class PairingError(DeltaLensError):
    """Two checkpoints do not fit each other."""


class DataError(DeltaLensError):
    """Rows of a data file cannot be used."""


class RecordError(DeltaLensError):
    """A study or run folder cannot be used."""


def several(headline: str, faults: Sequence[str]) -> str:
    """One message for all faults of a check: the first 20, the rest counted. A hostile name can be
    as long as its file: a fault is cut where it would fill the terminal."""
    short = (fault if len(fault) < _LONGEST else f"{fault[:_LONGEST]}..." for fault in faults)
    lines = [headline, *(f"  - {fault}" for fault in itertools.islice(short, SHOWN))]
    if len(faults) > SHOWN:
        lines.append(f"  ... and {len(faults) - SHOWN} more")
    return "\n".join(lines)
