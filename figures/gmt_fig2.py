"""GMT, Figure 2: performance over the mask ratio (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.looks import looks_of
from deltalens.catalog.methods import Look, has_ratio, method_name
from deltalens.catalog.metrics import axis_label, is_shown, scale_of
from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.loading import load_finite
from deltalens.figures.mft_panels import spread
from deltalens.figures.registry import FigureEntry
from deltalens.figures.style import new_figure, styled

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw a mask-ratio sweep: a panel for each data set, a line for each method with a band over
    seeds (of a single one: a standard error to either side), the level of plain fine-tuning; a
    second axis where two metrics differ in scale.

    Args:
        folders: of the study.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no mask-ratio sweep is there, or no cell of it is finished.
    """
    from matplotlib.lines import Line2D

    (folder,) = folders
    record = load_finite(folder)
    if record.kind != "mask-ratio-sweep" or record.cells.empty:
        raise RecordError(f"{record.path}: no mask-ratio sweep with finished cells")
    frame = record.cells
    frame = frame[frame["metric"].map(is_shown)]
    frame = frame.assign(method=frame["method"].replace("sft", record.plain))
    sets: dict[str, list[str]] = {}
    for metric in dict.fromkeys(frame["metric"]):
        sets.setdefault(metric.rpartition("/")[0], []).append(metric)
    with styled():
        figure = new_figure(3.0 * len(sets) + 0.4, layout="constrained")
        axes = figure.subplots(len(sets), 1, squeeze=False)
        for axis, (name, metrics) in zip(axes.flat, sets.items(), strict=True):
            _panel(axis, frame, metrics)
            axis.set_title(name, fontsize=9)
        handles: dict[str, Any] = {}
        for axis in figure.axes:
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        if any(len(metrics) > 1 for metrics in sets.values()):
            handles["open markers, dotted: right axis"] = Line2D(
                [],
                [],
                color="0.4",
                linestyle=":",
                marker="o",
                markersize=4,
                markerfacecolor="white",
            )
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles))
        )
        return [Drawing(entry.file_name, figure)]


def _panel(axis: Any, frame: pd.DataFrame, metrics: list[str]) -> None:
    axis.set(xlabel="mask ratio (fraction masked out)", xlim=(-0.02, 1.02))
    for place, metric in enumerate(metrics[:2]):
        own = axis if not place else axis.twinx()
        if place:
            own.spines["right"].set_visible(True)
            own.grid(visible=False)
        scale = scale_of(metric)
        own.set_ylabel(axis_label(metric))
        part = frame[frame["metric"] == metric]
        # Plain training looks the same whatever it learns by.
        names = {str(each): "sft" if each == "dpo" else str(each) for each in part["method"]}
        looks = looks_of(names.values(), on_base=True)
        for method, name in names.items():
            cells = part[part["method"] == method]
            _line(own, cells, method, looks[name], scale, dashed=bool(place))


def _line(
    axis: Any, frame: pd.DataFrame, method: str, look: Look, scale: float, *, dashed: bool
) -> None:
    """One method; dashed lines belong to the second metric, and have no place in the legend."""
    color, marker = look.color, look.marker
    label = None if dashed else method
    points = spread(frame, ["mask_ratio"], scale)
    mean = points["mean"]
    if not has_ratio(method):
        style = (0, (1, 1)) if dashed else ("-." if method_name(method) == "hft" else "--")
        axis.axhline(float(mean.iloc[0]), color=color, linestyle=style, linewidth=1, label=label)
        return
    axis.plot(
        mean.index,
        mean,
        color=color,
        marker=marker,
        markersize=4,
        linewidth=1.4,
        linestyle=":" if dashed else "-",
        markerfacecolor="white" if dashed else color,
        label=label,
    )
    axis.fill_between(
        mean.index,
        points["low"],
        points["high"],
        color=color,
        alpha=0.15,
        linewidth=0,
    )
