"""Performance over a ratio, held against the fine-tune and continued fine-tuning: of what MFT's
Figures 4, 5, 8 and 9 are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import REFERENCES, Look
from deltalens.catalog.metrics import scale_of
from deltalens.figures.mft_panels import Panel, curve, draw_panels, level
from deltalens.figures.mft_studies import LOOKS, in_order, load_all

__all__ = ["draw_data_ratios", "draw_mask_ratios"]


def draw_mask_ratios(folders: Sequence[str | Path], name: str) -> list[Path]:
    """Draw mask-ratio sweeps of methods that remove weights.

    Args:
        folders: of the studies; the picture is written to the first.
        name: of the files.

    Raises:
        RecordError: a folder without such a sweep, or without a finished cell.
    """
    says = "Ratio 0 is the fine-tune itself."
    return _draw(
        folders,
        "mask-ratio-sweep",
        "mask_ratio",
        name,
        "mask ratio (fraction of weights removed)",
        says,
    )


def draw_data_ratios(
    folders: Sequence[str | Path], name: str, looks: Mapping[str, Look] = LOOKS
) -> list[Path]:
    """Draw sweeps over the share of the training rows; else as `draw_mask_ratios`."""
    xlabel = "data ratio (fraction of the training rows)"
    return _draw(folders, "data-ratio-sweep", "data_ratio", name, xlabel, "", looks)


def _draw(
    folders: Sequence[str | Path],
    kind: str,
    column: str,
    name: str,
    xlabel: str,
    says: str,
    looks: Mapping[str, Look] = LOOKS,
) -> list[Path]:
    studies = load_all(folders, kind)
    rows = [
        [Panel(study, data, metric) for metric in metrics]
        for study in studies
        for data, metrics in study.sets.items()
    ]

    def draw(axis: Any, panel: Panel) -> None:
        frame, scale = panel.study.of(panel.data, panel.name), scale_of(panel.name)
        for method in in_order([str(one) for one in frame["method"]]):
            own = frame[frame["method"] == method]
            across = own[column].nunique() == 1 and float(own[column].iloc[0]) == 0
            if method in REFERENCES and across:
                level(axis, own, looks[method], scale)
            else:
                curve(axis, own, column, looks.get(method, Look(method, "0.2", "x", "-")), scale)
        axis.set_xlim(left=0)

    return draw_panels(rows, draw, studies[0].path, name, xlabel=xlabel, says=says)
