"""Performance over a ratio, beside the fine-tune and continued fine-tuning: what MFT's Figures 4
and 5 and their twins have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.catalog.looks import looks_of
from deltalens.catalog.methods import METHODS, REFERENCES, Look
from deltalens.catalog.metrics import scale_of
from deltalens.figures.decades import scale_decades
from deltalens.figures.drawing import Drawing
from deltalens.figures.mft_panels import Panel, curve, draw_panels, level
from deltalens.figures.mft_studies import LOOKS, in_order, load_all
from deltalens.figures.paper_points import draw_points, mft_points, mft_tables, points_note

__all__ = ["DATA_RATIO_LABEL", "draw_ratios"]

DATA_RATIO_LABEL = "data ratio (fraction of the training rows)"


def draw_ratios(
    folders: Sequence[Path],
    kind: str,
    name: str,
    *,
    xlabel: str,
    note: str = "",
    looks: Mapping[str, Look] = LOOKS,
) -> list[Drawing]:
    """Draw sweeps over a ratio: for each data set a panel for each metric.

    Args:
        folders: of the studies.
        kind: `mask-ratio-sweep` or `data-ratio-sweep`.
        name: of the files.
        xlabel: of the x-axes.
        note: a sentence under the figure.
        looks: label, color and marker of each method.

    Returns:
        The figure.

    Raises:
        RecordError: a folder has no such sweep, or no cell of it is finished.
    """
    studies = load_all(folders, kind)
    column = {"mask-ratio-sweep": "mask_ratio", "data-ratio-sweep": "data_ratio"}[kind]
    rows = [
        [Panel(study, data, metric) for metric in metrics]
        for study in studies
        for data, metrics in study.sets.items()
    ]

    of_paper: list[bool] = []

    def draw(axis: Any, panel: Panel) -> None:
        frame, scale = panel.study.of(panel.data, panel.name), scale_of(panel.name)
        methods = in_order([str(name) for name in frame["method"]])
        own_looks = looks_of(methods, known=looks)
        for method in methods:
            cells = frame[frame["method"] == method]
            constant = cells[column].nunique() == 1 and float(cells[column].iloc[0]) == 0
            if method in REFERENCES and constant:
                level(axis, cells, looks[method], scale)
            else:
                curve(axis, cells, column, own_looks[method], scale)
        scale_decades(axis, panel.name, frame["value"])
        axis.set_xlim(left=0)
        at = _printed_at(kind) if looks is LOOKS else {}
        points = mft_points(panel.data, at, panel.study.record.model)
        of_paper.append(draw_points(axis, panel.name, points, looks))

    def caption() -> str:
        whose = mft_tables(study.record.model for study in studies)
        return f"{note} {points_note(any(of_paper), whose) if looks is LOOKS else ''}"

    return [draw_panels(rows, draw, name, xlabel=xlabel, note=caption)]


def _printed_at(kind: str) -> dict[str, float]:
    """Method -> where the paper's Table 1 stands in its figure: masks at 10 %; trainings at all the
    data."""
    printed = {name: one for name, one in METHODS.items() if one.in_mft and not one.from_base}
    if kind == "data-ratio-sweep":
        return {name: 1.0 for name, one in printed.items() if one.trains}
    masks = {name: 0.1 for name, one in printed.items() if one.masks}
    return {"ft": 0.0, **masks}
