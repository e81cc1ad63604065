"""Checkpoints of a training: sealed once they are complete, and verified before one is resumed.

The seal also covers what belongs to a checkpoint and is stored beside it: the metrics up to that
step and, if held-out rows choose the result, the best weights so far.
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
"""Name of the file with the best weights so far, and their step; it is stored beside the
checkpoints."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_MODEL_CARD = "README.md"
"""trl writes one beside its checkpoints."""


@dataclass(frozen=True)
class SealedCheckpoint:
    """A complete and undamaged checkpoint."""

    path: Path
    step: int
    last: bool
    """Whether it was written after the training's last step."""
    metrics: tuple[int, str]
    """Size and checksum of the metrics file when it was written."""
    best: str | None
    """Name of the file beside it with the best weights so far; None if there is none."""


def seal(checkpoint: Path, last: bool, metrics: tuple[int, str], best: Path | None) -> None:
    """Flush a checkpoint that has been written to the disk, and then mark it as complete.

    Args:
        checkpoint: the folder.
        last: whether it was written after the last step.
        metrics: size and checksum of the metrics file.
        best: the file beside it with the best weights so far.

    Raises:
        RecordError: the folder contains something other than regular files and folders.
        OSError: it cannot be read, or not be written to the disk.
    """
    beside = {best.name: list(checksum_of_file(best))} if best else {}
    write_seal(checkpoint, {"last": last, "metrics": list(metrics), "best": beside})


def last_whole(folder: Path) -> tuple[SealedCheckpoint | None, list[str]]:
    """Find the last complete and undamaged checkpoint.

    Incomplete checkpoints are removed, and so are damaged ones if an older one can be resumed.

    Args:
        folder: the folder of a training's checkpoints.

    Returns:
        The checkpoint, or None if there is none; and what is wrong with later ones.

    Raises:
        RecordError: all checkpoints are damaged; the message lists them.
    """
    for step in steps_of(folder):
        checkpoint = folder / f"checkpoint-{step}"
        if not os.path.lexists(checkpoint / SEAL):
            remove(checkpoint)
    faults: dict[Path, str] = {}
    for step in sorted(steps_of(folder), reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        try:
            sealed = _checked(checkpoint, step)
        except RecordError as error:
            faults[checkpoint] = str(error)
            continue
        for damaged in faults:
            remove(damaged)
        return sealed, list(faults.values())
    if faults:
        headline = (
            f"{folder}: every checkpoint is damaged; restore one, or remove {folder} and resume: "
            "the training then starts over"
        )
        raise RecordError(fault_list(headline, list(faults.values())))
    return None, []


def steps_of(folder: Path) -> list[int]:
    """List the steps after which checkpoints were written, complete or not.

    Args:
        folder: the folder of a training's checkpoints.

    Returns:
        Numbers of steps, in no particular order.
    """
    matches = (_CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoint-*"))
    return [int(match[1]) for match in matches if match]


def _checked(checkpoint: Path, step: int) -> SealedCheckpoint:
    about = check_seal(checkpoint)
    try:
        best = [name for name in about["best"] if BEST.fullmatch(name)]
        for name in best:
            check_file(checkpoint.parent / name, about["best"][name])
        size, digest = about["metrics"]
        return SealedCheckpoint(
            checkpoint, step, bool(about["last"]), (int(size), str(digest)), (*best, None)[0]
        )
    except OSError as error:
        raise RecordError(f"{checkpoint}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{checkpoint / SEAL}: damaged: {describe_error(error)}") from error


def remove_checkpoints(folder: Path) -> None:
    """Remove a training's checkpoints, and their folder if nothing else is in it.

    Args:
        folder: the folder of a training's checkpoints; it may be missing.

    Raises:
        RecordError: a checkpoint may not be removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        is_weights = _CHECKPOINT.fullmatch(path.name) or BEST.fullmatch(path.name)
        if is_weights or path.name == _MODEL_CARD or is_temporary(path.name):
            remove(path)
    with suppress(OSError):
        folder.rmdir()
