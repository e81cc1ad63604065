"""Which pictures and tables a study of trainings has."""

from __future__ import annotations

from pathlib import Path

from deltalens.catalog.methods import METHODS
from deltalens.figures import (
    gmt_data,
    gmt_fig2,
    gmt_tab1,
    gmt_tab2,
    gmt_tab4,
    mft_fig2,
    mft_fig3,
    mft_fig4,
    mft_fig5,
    mft_fig7,
    mft_tab1,
    mft_tab3,
    mft_tab5,
)
from deltalens.figures.mft_layers import group_sizes
from deltalens.figures.mft_studies import load
from deltalens.figures.sweep_tables import load_sweep
from deltalens.io.records import StudyRecord, load_study

__all__ = [
    "draw_comparison",
    "draw_data_ratio_sweep",
    "draw_layer_sweep",
    "draw_mask_ratio_sweep",
]


def draw_mask_ratio_sweep(folder: str | Path) -> list[Path]:
    """GMT's Figure 2 and tables, Table 2 where data sets share a metric; for MFT its Figure 4."""
    if "mft" in _methods(load_study(folder)):
        return mft_fig4.draw(folder)
    several = [gmt_tab2.draw] if gmt_tab2.shared_metrics(load_sweep(folder)) else []
    drawers = [gmt_fig2.draw, gmt_tab1.draw, *several, gmt_tab4.draw]
    return [path for one in drawers for path in one(folder)]


def draw_data_ratio_sweep(folder: str | Path) -> list[Path]:
    """MFT's Figure 5; of masked gradients what GMT leaves open."""
    spec = load_study(folder).spec.get("methods", ())
    masked = any(METHODS[name].masks == "gradients" for name in spec if name in METHODS)
    return gmt_data.draw(folder) if masked else mft_fig5.draw(folder)


def draw_layer_sweep(folder: str | Path) -> list[Path]:
    """MFT's Figure 3, 7 or both, as there are groups for them."""
    small, large = group_sizes(folder)
    drawers = [mft_fig3.draw] * bool(small or not large) + [mft_fig7.draw] * bool(large)
    return [path for one in drawers for path in one(folder)]


def draw_comparison(folder: str | Path) -> list[Path]:
    """What a single study has of MFT's Figure 2 and Tables 1, 3 and 5; Tables 2 and 6 differ from
    1 and 5 in the paper's model only, and are drawn by name."""
    study = load(folder, "comparison")
    drawn = {
        mft_fig2.draw: study.frame["step"].notna().any(),
        mft_tab3.draw: study.record.setting("threshold", "mft") is not None,
        mft_tab5.draw: len(study.sets) > 1,
    }
    drawers = [mft_tab1.draw, *(one for one, there in drawn.items() if there)]
    return [path for one in drawers for path in one(folder)]


def _methods(record: StudyRecord) -> set[str]:
    return {*record.spec.get("methods", ()), *record.cells["method"]}
