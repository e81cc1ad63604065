"""Checkpoints of a training: sealed once they are whole, and checked before one is gone on from.

The seal is a file in the checkpoint that lists every file of it, with sizes and checksums; it is
written when all of them are on the disk. Without it a checkpoint was cut short. With it, it lists
what lies beside the checkpoint and belongs to it, too: the metrics up to then, and the best weights
so far where held-out rows decide.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError, reason, several
from deltalens.io.checksum import check_sealed, checksum_of_file, sealed
from deltalens.io.files import is_temporary, read_plain, sync_folder, write_whole
from deltalens.io.plain_json import parse_json
from deltalens.io.platform import sync
from deltalens.io.version import FORMAT

__all__ = [
    "BEST",
    "SEAL",
    "SealedCheckpoint",
    "last_whole",
    "remove",
    "remove_checkpoints",
    "seal",
    "steps_of",
]

SEAL = "deltalens-complete"
"""In a checkpoint that was written to its end."""
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
    names = sorted(name for name, _ in _entries(checkpoint))
    for name in names:
        with (checkpoint / name).open("rb") as stream:
            sync(stream.fileno())
    record = sealed(
        {
            "format": FORMAT,
            "name": checkpoint.name,
            "last": last,
            "files": {name: list(checksum_of_file(checkpoint / name)) for name in names},
            "metrics": list(metrics),
            "best": {best.name: list(checksum_of_file(best))} if best else {},
        }
    )
    write_whole(checkpoint / SEAL, json.dumps(record, indent=2).encode())
    sync_folder(checkpoint)
    sync_folder(checkpoint.parent)


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
        raise RecordError(several(headline, list(faults.values())))
    return None, []


def steps_of(folder: Path) -> list[int]:
    """After which steps checkpoints were written, whole or not."""
    names = (_CHECKPOINT.fullmatch(found.name) for found in folder.glob("checkpoint-*"))
    return [int(one[1]) for one in names if one]


def _checked(checkpoint: Path, step: int) -> SealedCheckpoint:
    try:
        record = parse_json(checkpoint / SEAL, read_plain(checkpoint / SEAL))
        check_sealed(checkpoint / SEAL, record, needed=True)
        if record["format"] != FORMAT or record["name"] != checkpoint.name:
            raise ValueError(f"the seal of {record['name']}, format {record['format']}")
        _check_files(checkpoint, record["files"])
        best = [name for name in record["best"] if BEST.fullmatch(name)]
        for name in best:
            _check_file(checkpoint.parent / name, record["best"][name])
        size, known = record["metrics"]
        return SealedCheckpoint(
            checkpoint, step, bool(record["last"]), (int(size), str(known)), (*best, None)[0]
        )
    except OSError as error:
        raise RecordError(f"{checkpoint}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{checkpoint / SEAL}: damaged: {reason(error)}") from error


def _check_files(checkpoint: Path, known: dict[str, Any]) -> None:
    there = dict(_entries(checkpoint))
    for name in sorted(known.keys() | there.keys()):
        if name not in there:
            raise RecordError(f"{checkpoint / name}: missing")
        if name not in known:
            raise RecordError(f"{checkpoint / name}: no part of the checkpoint that was written")
    for name in known:
        _check_file(checkpoint / name, known[name])


def _check_file(file: Path, known: Any) -> None:
    size, digest = known
    if file.lstat().st_size != size or checksum_of_file(file) != (size, digest):
        raise RecordError(f"{file}: damaged: not what was written")


def _entries(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    """All files below a checkpoint but the seal, by their names in it.

    Raises:
        RecordError: one is a link, pipe or device.
    """
    for found in _plain_files(checkpoint):
        name = found.relative_to(checkpoint).as_posix()
        if name != SEAL and not is_temporary(found.name):
            yield name, found


def _plain_files(folder: Path) -> Iterator[Path]:
    """All files below a folder.

    Raises:
        RecordError: there is something else than files and folders, or the folder is a link.
    """
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise RecordError(f"{folder}: a link, file, pipe or device, and no folder; remove it")
    for found in folder.iterdir():
        mode = found.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield from _plain_files(found)
        elif stat.S_ISREG(mode):
            yield found
        else:
            raise RecordError(f"{found}: a link, pipe or device; remove it")


def remove(path: Path) -> None:
    """Remove a folder of a training with what is in it, or whatever lies in its place; a link, not
    where it leads. It may be gone already.

    Raises:
        RecordError: there is no right to.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(f"{path}: cannot be removed: {error}") from error


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
