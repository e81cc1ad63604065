"""The papers' figures and tables, drawn from the records of a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["draw"]


def draw(folder: str | Path) -> list[Path]:
    """Draw whatever pictures belong to the study or training in a folder; returns their files.

    Raises:
        RecordError: neither is there, or none that has pictures.
    """
    from deltalens.errors import RecordError
    from deltalens.figures import (
        anatomy,
        gmt_data,
        gmt_fig3,
        gmt_tab3,
        landscape,
        mft_fig5,
        removed_shares,
    )
    from deltalens.io.records import load_study

    if (Path(folder) / removed_shares.RECORD).is_file():
        return removed_shares.draw(folder)
    record = load_study(folder)
    methods = record.asked.get("methods", ())
    drawers: dict[str, Callable[[str | Path], list[Path]]] = {
        "drop-study": gmt_fig3.draw,
        "inspect": anatomy.draw,
        "landscape": landscape.draw,
        "efficiency": gmt_tab3.draw,
        "mask-ratio-sweep": _draw_sweep,
        "layer-sweep": _draw_layers,
        "data-ratio-sweep": gmt_data.draw if {*methods} & {*gmt_data.METHODS} else mft_fig5.draw,
        "comparison": _draw_comparison,
    }
    if record.kind not in drawers:
        raise RecordError(f"{record.path}: nothing is drawn of a study of kind {record.kind!r}")
    return drawers[record.kind](folder)


def _draw_sweep(folder: str | Path) -> list[Path]:
    """GMT's Figure 2 and tables, Table 2 where data sets share a metric; for MFT its Figure 4."""
    from deltalens.figures import gmt_fig2, gmt_tab1, gmt_tab2, gmt_tab4, mft_fig4
    from deltalens.figures.sweep_tables import load_sweep
    from deltalens.io.records import load_study

    record = load_study(folder)
    if "mft" in {*record.asked.get("methods", ()), *record.cells["method"]}:
        return mft_fig4.draw(folder)
    several = [gmt_tab2.draw] if gmt_tab2.shared_metrics(load_sweep(folder)) else []
    drawers = [gmt_fig2.draw, gmt_tab1.draw, *several, gmt_tab4.draw]
    return [path for one in drawers for path in one(folder)]


def _draw_layers(folder: str | Path) -> list[Path]:
    """MFT's Figure 3, 7 or both, as there are groups for them."""
    from deltalens.figures import mft_fig3, mft_fig7
    from deltalens.figures.mft_layers import group_sizes

    small, large = group_sizes(folder)
    drawers = [mft_fig3.draw] * bool(small or not large) + [mft_fig7.draw] * bool(large)
    return [path for one in drawers for path in one(folder)]


def _draw_comparison(folder: str | Path) -> list[Path]:
    """What a single study has of MFT's Figure 2 and Tables 1, 3 and 5; Tables 2 and 6 differ from
    1 and 5 in the paper's model only, and are drawn by name."""
    from deltalens.figures import mft_fig2, mft_tab1, mft_tab3, mft_tab5
    from deltalens.figures.mft_studies import load

    study = load(folder, "comparison")
    drawn = {
        mft_fig2.draw: study.frame["step"].notna().any(),
        mft_tab3.draw: study.record.setting("threshold", "mft") is not None,
        mft_tab5.draw: len(study.sets) > 1,
    }
    drawers = [mft_tab1.draw, *(one for one, there in drawn.items() if there)]
    return [path for one in drawers for path in one(folder)]
