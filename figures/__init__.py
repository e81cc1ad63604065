"""The papers' figures and tables, drawn from the records of a study."""

from __future__ import annotations

from pathlib import Path

__all__ = ["draw"]


def draw(folder: str | Path) -> list[Path]:
    """Draw whatever pictures belong to the study or training in a folder; returns their files.

    Raises:
        RecordError: neither is there, or none that has pictures.
    """
    from deltalens.catalog.plugins import load_code
    from deltalens.catalog.studies import study_of
    from deltalens.errors import RecordError
    from deltalens.figures import removed_shares
    from deltalens.io.records import is_training, load_study

    if is_training(folder):
        return removed_shares.draw(folder)
    record = load_study(folder)
    study = study_of(record.spec)
    if study is None or not study.figure:
        raise RecordError(f"{record.path}: nothing is drawn of a study of kind {record.kind!r}")
    drawn: list[Path] = load_code(study.figure)(folder)
    return drawn
