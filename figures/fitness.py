"""Whether folders hold what a figure is drawn from, said before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError, RecordError
from deltalens.figures.entry import FigureEntry
from deltalens.io.records import StudyRecord, is_study, is_training, load_study

__all__ = ["check_fitness"]

_TAKES_TRAININGS = ("mft-fig2",)
"""Figures that also take the folder of a training."""


def check_fitness(entry: FigureEntry, folders: Sequence[Path], others: Sequence[Path] = ()) -> None:
    """Refuse folders that a figure cannot be drawn from.

    Args:
        entry: the figure.
        folders: that it is to be drawn from.
        others: further studies of the same kind, which an option names.

    Raises:
        DeltaLensError: too few folders or too many.
        RecordError: a folder holds no study of the kind that the figure needs, nothing is measured
            yet, or several were written by versions that measure differently. The message says
            which command makes what is needed.
    """
    name = entry.name
    if not entry.source:
        if folders:
            raise DeltaLensError(f"{name} shows the method and is drawn from no study; name none")
        return
    if not folders:
        raise DeltaLensError(f"{name}: name a folder to draw it from, {_made_by(entry)}")
    if len(folders) > 1 and not entry.several:
        raise DeltaLensError(f"{name} is drawn from a single folder; {len(folders)} were named")
    if entry.source not in _KINDS:
        return
    studies = [folder for folder in folders if not _is_extra(entry, folder)]
    if not studies:
        raise RecordError(f"{name}: trainings alone do not do; it needs {_made_by(entry)}")
    _check_versions([_checked(entry, folder) for folder in (*studies, *others)])


_KINDS = {name for name in STUDIES if name != "layer-sweep-drop"}


def _is_extra(entry: FigureEntry, folder: Path) -> bool:
    return entry.name in _TAKES_TRAININGS and is_training(folder)


def _made_by(entry: FigureEntry) -> str:
    words = _words(entry.source)
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}, made by `{entry.command}`"


def _words(source: str) -> str:
    """A kind of study as a sentence has it."""
    return {"run": "probe's run", "inspect": "inspection", "evaluate": "evaluation"}.get(
        source, source
    )


def _checked(entry: FigureEntry, folder: Path) -> StudyRecord:
    if not is_study(folder):
        found = "a training's folder" if is_training(folder) else "no study"
        raise RecordError(f"{folder}: {found}; {entry.name} needs {_made_by(entry)}")
    record = load_study(folder)
    if record.kind != entry.source or record.cells.empty:
        other = f" (it is a study of kind {record.kind})" if record.kind != entry.source else ""
        raise RecordError(
            f"{record.path}: no {_words(entry.source)} with finished cells{other}; "
            f"{entry.name} needs {_made_by(entry)}"
        )
    return record


def _check_versions(records: Sequence[StudyRecord]) -> None:
    first, *others = records
    for record in others:
        if record.identity != first.identity:
            raise RecordError(
                f"{record.path}: written by deltalens {record.version}, and {first.path} by "
                f"{first.version}, which recorded other things of what decides the numbers: they "
                "cannot share a figure; measure one of them again, or draw them apart"
            )
