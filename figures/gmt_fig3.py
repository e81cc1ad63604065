"""GMT, Figure 3: performance over the drop rate, a line for each strategy (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.methods import Look
from deltalens.catalog.metrics import axis_label, scale_of
from deltalens.errors import RecordError
from deltalens.figures.coinciding import coinciding_note, layered
from deltalens.figures.decades import scale_decades
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.floors import above_floor, floor_note
from deltalens.figures.loading import load_finite
from deltalens.figures.mft_panels import band
from deltalens.figures.paper_points import draw_points, gmt_drops, points_note
from deltalens.figures.style import (
    STRATEGY,
    add_caption,
    add_legend,
    columns_for,
    new_figure,
    stacked,
    styled,
)
from deltalens.io.records import StudyRecord
from deltalens.io.tables import over_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_LOOKS = {name: Look(name, *look) for name, look in STRATEGY.items()}


_LONG = 0.6
"""The part of a panel's height that its axis has at least."""
_BANDS = (
    "Bands: of random the lowest and the highest order, of the others the measurement's standard "
    "error."
)


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw drop studies: a panel for each metric with a line for each strategy, the levels of the
    base and the fine-tune, and a shade over the share of unchanged entries.

    The band around `random` reaches from the lowest random order to the highest, and is left out
    with a single order; around the other strategies it is the measurement's standard error. A share
    of which the fine-tune has less than 5 % has no panel.

    Args:
        folders: of the studies, such as one for each model.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: a folder has no drop study, or no cell of it is finished.
    """
    records = [load_finite(folder) for folder in folders]
    for record in records:
        if record.kind != "drop-study" or record.cells.empty:
            raise RecordError(f"{record.path}: no drop study with finished cells")
    shown = {record.path: _shown(record) for record in records}
    panels = [(record, metric) for record in records for metric in shown[record.path]]
    low = [
        (metric.rpartition("/")[0], metric)
        for record in records
        for metric in dict.fromkeys(map(str, record.cells["metric"]))
        if metric not in shown[record.path]
    ]
    columns = min(columns_for(len(panels)), 2 if len(panels) > 3 else 3)
    lines = -(-len(panels) // columns)
    with styled():
        figure = new_figure(2.7 * lines + 0.5, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        of_paper = False
        long = _LONG * figure.get_figheight() / lines
        for axis, (record, metric) in zip(axes.flat, panels, strict=False):
            of_paper |= _panel(axis, record, metric)
            axis.set_ylabel(stacked(axis_label(metric), long))
            if len(records) > 1:
                title = axis.get_title()
                axis.set_title(
                    f"{record.path.name}: {title}" if title else record.path.name, fontsize=9
                )
        for spare in axes.flat[len(panels) :]:
            spare.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        add_legend(figure, dict(zip(labels, handles, strict=True)))
        paper = points_note(of_paper, "GMT's Table 1, MISTRAL-7B on maths")
        add_caption(figure, [_BANDS, floor_note(low), coinciding_note(axes.flat), paper])
        return [Drawing(entry.file_name, figure)]


def _shown(record: StudyRecord) -> list[str]:
    """The metrics that have a panel."""
    cells = record.cells
    metrics = [str(metric) for metric in dict.fromkeys(cells["metric"])]
    return above_floor(metrics, cells[cells["rate"] == 0.0])


def _panel(axis: Any, record: StudyRecord, metric: str) -> bool:
    """One panel; whether it has points of the paper."""
    frame = record.cells[record.cells["metric"] == metric]
    scale = scale_of(metric)
    base_itself = frame["strategy"] == "base"
    for strategy in dict.fromkeys(frame[~base_itself]["strategy"]):
        _line(axis, frame[frame["strategy"] == strategy], str(strategy), scale)
    at_base = base_itself if record.facts.get("unpaired") else frame["rate"] == 1.0
    for at, label, dashes in ((frame["rate"] == 0.0, "fine-tuned", ":"), (at_base, "base", "--")):
        ends = frame[at]["value"]
        if not ends.empty and isfinite(ends.iloc[0]):
            level = scale * float(ends.iloc[0])
            style = {"linestyle": dashes, "linewidth": 1, "zorder": 2.6}
            axis.axhline(level, color="0.35", label=label, **style)
    unchanged = record.facts["unchanged"] / record.facts["entries"]
    if unchanged >= 0.005 and not record.spec["changed_only"]:
        shade = {"facecolor": "0.92", "edgecolor": "none", "zorder": 0}
        axis.axvspan(0, unchanged, label="entries exactly unchanged", **shade)
    scale_decades(axis, metric, frame["value"])
    axis.set(xlabel=_rate_label(record), xlim=(-0.02, 1.02))
    if "/" in metric:
        axis.set_title(metric.rsplit("/", 1)[0], fontsize=9)
    return draw_points(axis, metric, gmt_drops(_data_of(record, metric)), _LOOKS)


def _data_of(record: StudyRecord, metric: str) -> str:
    """The data set of a metric; the study's first file if it has a single one."""
    (first, *_), *_ = record.spec.get("data") or [[""]]
    return metric.rpartition("/")[0] or str(first)


def _rate_label(record: StudyRecord) -> str:
    if record.facts.get("unpaired"):
        return "drop rate (of the tensors in both checkpoints)"
    return "drop rate"


def _line(axis: Any, frame: pd.DataFrame, strategy: str, scale: float) -> None:
    seeds = frame.groupby("rate")["value"]
    mean = scale * over_seeds(seeds)
    rates = mean.index
    color, marker, line = STRATEGY.get(strategy, ("0.2", "x", "-"))
    orders, label = frame["seed"].nunique(), strategy
    if strategy == "random":
        label = f"random ({'1 order' if orders == 1 else f'mean of {orders} orders'})"
    style = {"color": color, "marker": marker, "linestyle": line, "label": label}
    axis.plot(rates, mean, **style, **layered(axis, line))
    look = band(color, line)
    if orders > 1:
        ends = (scale * over_seeds(seeds, edge) for edge in ("min", "max"))
        axis.fill_between(rates, *ends, **look)
    elif strategy != "random":  # A single random order does not tell how far orders lie apart.
        spread = scale * frame.set_index("rate")["stderr"].reindex(rates).fillna(0.0)
        axis.fill_between(rates, mean - spread, mean + spread, **look)
