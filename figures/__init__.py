"""The papers' figures and tables, drawn from the records of a study."""

from __future__ import annotations

from pathlib import Path

__all__ = ["draw"]


def draw(folder: str | Path) -> list[Path]:
    """Draw whatever pictures belong to the study in a folder; returns their files.

    Raises:
        RecordError: no study there, or of a kind without pictures.
    """
    from deltalens.errors import RecordError
    from deltalens.figures import anatomy, gmt_fig2, gmt_fig3
    from deltalens.io.records import load_study

    record = load_study(folder)
    drawers = {
        "drop-study": gmt_fig3.draw,
        "inspect": anatomy.draw,
        "mask-ratio-sweep": gmt_fig2.draw,
    }
    if record.kind not in drawers:
        raise RecordError(f"{record.path}: nothing is drawn of a study of kind {record.kind!r}")
    return drawers[record.kind](folder)
