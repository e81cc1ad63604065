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
    from deltalens.figures import anatomy, gmt_fig3, gmt_tab3
    from deltalens.io.records import load_study

    record = load_study(folder)
    drawers = {
        "drop-study": gmt_fig3.draw,
        "inspect": anatomy.draw,
        "efficiency": gmt_tab3.draw,
        "mask-ratio-sweep": _draw_sweep,
    }
    if record.kind not in drawers:
        raise RecordError(f"{record.path}: nothing is drawn of a study of kind {record.kind!r}")
    return drawers[record.kind](folder)


def _draw_sweep(folder: str | Path) -> list[Path]:
    """Figure 2 and the tables; Table 2 where several data sets share a metric."""
    from deltalens.figures import gmt_fig2, gmt_tab1, gmt_tab2, gmt_tab4
    from deltalens.figures.sweep_tables import load_sweep

    several = [gmt_tab2.draw] if gmt_tab2.shared_metrics(load_sweep(folder)) else []
    drawers = [gmt_fig2.draw, gmt_tab1.draw, *several, gmt_tab4.draw]
    return [path for one in drawers for path in one(folder)]
