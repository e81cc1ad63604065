"""Finding studies, trainings and runs in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deltalens.errors import RecordError
from deltalens.io.records import (
    RunRecord,
    StudyRecord,
    TrainingRecord,
    find_run,
    is_run,
    is_study,
    is_training,
    load_run,
    load_study,
    load_training,
)

__all__ = ["DEPTH", "Found", "find_records"]

Record = StudyRecord | RunRecord | TrainingRecord
DEPTH = 4
"""How many levels below a folder are searched."""
_MOST_FOLDERS = 20_000
"""Folders that are looked into before a search gives up."""


@dataclass(frozen=True)
class Found:
    """A record, and what a page calls it."""

    name: str
    """Its path below the folder that was given; unique on a page."""
    record: Record


def find_records(folders: Sequence[Path]) -> list[Found]:
    """Read every study, training and run in some folders.

    Args:
        folders: each a study, a training, a run, or a folder that holds some up to `DEPTH` levels
            down. Links and hidden folders below it are passed over.

    Returns:
        The records, each once: in the order of the folders, and sorted by path within each. A
        training is followed by the run of its last start.

    Raises:
        RecordError: a folder does not exist, is too large, or holds none; or a record is damaged or
            of a format that this version does not know.
    """
    paths: dict[Path, str] = {}
    for folder in folders:
        own = [*_records_in(folder)]
        if not own:
            raise RecordError(
                f"{folder}: no study, training or run here, nor up to {DEPTH} levels below it"
            )
        for path in own:
            paths.setdefault(path.resolve(), _name(path, folder))
    names = _unique(paths)
    return [Found(names[path], _load(path)) for path in paths]


def _records_in(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder")
    looked = 0
    waiting = [(folder, 0)]
    while waiting:
        path, depth = waiting.pop()
        looked += 1
        if looked > _MOST_FOLDERS:
            raise RecordError(
                f"{folder}: more than {_MOST_FOLDERS:,} folders: name those of the studies"
            )
        if _is_record(path):
            yield path
            if is_training(path) and (run := _run_in(path)):
                yield run
        elif depth < DEPTH:
            waiting += [(below, depth + 1) for below in reversed(_below(path))]


def _is_record(path: Path) -> bool:
    return is_study(path) or is_training(path) or is_run(path)


def _run_in(training: Path) -> Path | None:
    try:
        return find_run(training)
    except RecordError:
        return None  # It was not watched.


def _below(path: Path) -> list[Path]:
    try:
        entries = [*os.scandir(path)]
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(Path(entry.path) for entry in folders if not entry.name.startswith("."))


def _name(path: Path, folder: Path) -> str:
    below, whole = path.relative_to(folder), path.resolve()
    if len(below.parts) < 2 and is_run(path):
        # `run` alone says nothing: every training calls its run so.
        return f"{whole.parent.name}/{whole.name}"
    return below.as_posix() if below.parts else whole.name


def _unique(names: dict[Path, str]) -> dict[Path, str]:
    """Names that do not repeat: where two do, as many folders in front as it takes."""
    unique = dict(names)
    for length in range(2, 1 + max(len(path.parts) for path in names)):
        taken = [*unique.values()]
        for path, name in unique.items():
            if taken.count(name) > 1:
                unique[path] = Path(*path.parts[-length:]).as_posix()
    return unique


def _load(path: Path) -> Record:
    if is_study(path):
        return load_study(path)
    return load_training(path) if is_training(path) else load_run(path)
