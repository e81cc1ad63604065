"""Checkpoints of a training: sealed once they are whole, and checked before one is gone on from.

Their seal knows what lies beside the checkpoint and belongs to it, too: the metrics up to then, and
the best weights so far where held-out rows decide.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltalens.errors import RecordError, describe_error, fault_list
from deltalens.io.checksum import checksum_of_file
from deltalens.io.folders import remove
from deltalens.io.records.seal import SEAL, check_file, check_seal, write_seal
from deltalens.io.temporary import is_temporary

__all__ = [
    "BEST",
    "SealedCheckpoint",
    "last_whole",
    "remove_checkpoints",
    "seal",
    "steps_of",
]

BEST = re.compile(r"best-(\d+)\.safetensors")
"""Beside checkpoints: weights as they were best so far, and the step."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_CARD = "README.md"
"""trl writes one beside its checkpoints."""


@dataclass(frozen=True)
class SealedCheckpoint:
    """A checkpoint that is what was written."""

    path: Path
    step: int
    last: bool
    """No step is left to take after it."""
    metrics: tuple[int, str]
    """Size and checksum of the metrics when it was written."""
    best: str | None
    """Name of the file beside it with the best weights so far."""


def seal(checkpoint: Path, last: bool, metrics: tuple[int, str], best: Path | None) -> None:
    """A checkpoint has been written: bring it to the disk, and only then call it whole.

    Args:
        checkpoint: the folder.
        last: it is that of the last step.
        metrics: size and checksum of the metrics.
        best: the file beside it with the best weights so far.

    Raises:
        OSError: it cannot be read, or brought to the disk.
    """
    beside = {best.name: list(checksum_of_file(best))} if best else {}
    write_seal(checkpoint, {"last": last, "metrics": list(metrics), "best": beside})


def last_whole(folder: Path) -> tuple[SealedCheckpoint | None, list[str]]:
    """The last checkpoint that is what was written; None where there is none.

    Those that were cut short are removed, and those that are damaged once there is an older one to
    go on from.

    Args:
        folder: of a training's checkpoints.

    Returns:
        The checkpoint, and what is wrong with later ones.

    Raises:
        RecordError: all are damaged (each is named).
    """
    for step in steps_of(folder):
        found = folder / f"checkpoint-{step}"
        if not os.path.lexists(found / SEAL):
            remove(found)
    faults: dict[Path, str] = {}
    for step in sorted(steps_of(folder), reverse=True):
        found = folder / f"checkpoint-{step}"
        try:
            whole = _checked(found, step)
        except RecordError as error:
            faults[found] = str(error)
            continue
        for damaged in faults:
            remove(damaged)
        return whole, list(faults.values())
    if faults:
        headline = (
            f"{folder}: no checkpoint is whole; put back what is damaged, or remove {folder} and "
            "resume: it begins from the start"
        )
        raise RecordError(fault_list(headline, list(faults.values())))
    return None, []


def steps_of(folder: Path) -> list[int]:
    """After which steps checkpoints were written, whole or not."""
    names = (_CHECKPOINT.fullmatch(found.name) for found in folder.glob("checkpoint-*"))
    return [int(one[1]) for one in names if one]


def _checked(checkpoint: Path, step: int) -> SealedCheckpoint:
    about = check_seal(checkpoint)
    try:
        best = [name for name in about["best"] if BEST.fullmatch(name)]
        for name in best:
            check_file(checkpoint.parent / name, about["best"][name])
        size, known = about["metrics"]
        return SealedCheckpoint(
            checkpoint, step, bool(about["last"]), (int(size), str(known)), (*best, None)[0]
        )
    except OSError as error:
        raise RecordError(f"{checkpoint}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{checkpoint / SEAL}: damaged: {describe_error(error)}") from error


def remove_checkpoints(folder: Path) -> None:
    """Remove what a training wrote on the way, and the folder if nothing else is in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for found in folder.iterdir():
        known = _CHECKPOINT.fullmatch(found.name) or BEST.fullmatch(found.name)
        if known or found.name == _CARD or is_temporary(found.name):
            remove(found)
    with suppress(OSError):
        folder.rmdir()
