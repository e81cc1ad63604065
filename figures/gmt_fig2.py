"""GMT, Figure 2: performance over the mask ratio (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltalens.catalog.looks import looks_of
from deltalens.catalog.methods import Look, has_ratio
from deltalens.catalog.metrics import axis_label, leading, scale_of
from deltalens.errors import Lines
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_panels import spread
from deltalens.figures.mft_studies import check_same_data
from deltalens.figures.paper_points import draw_points, gmt_ratios, points_note
from deltalens.figures.style import add_caption, add_legend, columns_for, new_figure, styled
from deltalens.figures.sweep_tables import Sweep, load_sweep

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_BANDS = (
    "Lines: means over seeds. Bands: from the lowest seed to the highest; of one seed, a standard "
    "error to either side."
)
_PAPER = "GMT's Tables 1, 2 and 4"
_RIGHT = (0, (1, 1))


class _Panel(NamedTuple):
    """What one panel shows: a data set, or two."""

    sweep: Sweep
    title: str
    shown: Sequence[tuple[str, str]]
    """Data set and metric of the left axis, and of the right one if there is one."""


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw mask-ratio sweeps: a line for each method with a band over seeds (of a single one: a
    standard error to either side), and the level of plain
    fine-tuning. A study on two data sets is a panel with an axis for each, as in the paper; else
    each data set is a panel, whose second metric has the right axis.

    Args:
        folders: of the studies, such as one for each domain.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: a folder has no mask-ratio sweep, or no cell of it is finished.
    """
    sweeps = [load_sweep(folder) for folder in folders]
    check_same_data([sweep.record for sweep in sweeps])
    several = len(sweeps) > 1
    panels = [panel for sweep in sweeps for panel in _panels(sweep, several)]
    columns = columns_for(len(panels)) if several else 1
    rows = -(-len(panels) // columns)
    with styled():
        height = 2.7 if columns > 1 else 3.0
        figure = new_figure(height * rows + 0.7, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        looks = _looks(sweeps)
        of_paper = [
            _draw_panel(axis, panel, looks) for axis, panel in zip(axes.flat, panels, strict=False)
        ]
        for spare in axes.flat[len(panels) :]:
            spare.set_visible(False)
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.03, wspace=0.0)
        if columns > 1:
            for axis in axes.flat[: len(panels)]:
                axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        _legend(figure, any(len(panel.shown) > 1 for panel in panels))
        add_caption(figure, [_BANDS, _left_out(panels), points_note(any(of_paper), _PAPER)])
        return [Drawing(entry.file_name, figure)]


def _panels(sweep: Sweep, alone: bool) -> Iterator[_Panel]:
    """The panels of a study; a single one, `alone`, if it shares the figure with others."""
    sets = sweep.sets
    if len(sets) == 2 or (alone and len(sets) > 1):
        leads = [(data, leading(metrics) or metrics[0]) for data, metrics in sets.items()]
        yield _Panel(sweep, sweep.trained_on, leads[:2])
        return
    for data, metrics in sets.items():
        yield _Panel(sweep, data, [(data, metric) for metric in metrics[:2]])


def _left_out(panels: Sequence[_Panel]) -> str:
    """Which data sets no panel has room for."""
    shown = {(panel.sweep.record.path, data) for panel in panels for data, _ in panel.shown}
    missing = [
        data
        for panel in panels
        for data in panel.sweep.sets
        if (panel.sweep.record.path, data) not in shown
    ]
    return f"Without room in a panel: {', '.join(dict.fromkeys(missing))}." if missing else ""


def _looks(sweeps: Sequence[Sweep]) -> Mapping[str, Look]:
    """Plain training looks the same whatever it learns by."""
    labels = [method for sweep in sweeps for method in sweep.methods]
    looks = looks_of(labels, on_base=True)
    plain = sweeps[0].record.plain
    return (
        looks
        if plain == "sft" or "sft" not in looks
        else {
            **looks,
            "sft": looks["sft"]._replace(label=plain.upper()),
        }
    )


def _draw_panel(axis: Any, panel: _Panel, looks: Mapping[str, Look]) -> bool:
    """One panel; whether it has points of the paper."""
    axis.set(xlabel=Lines("mask ratio", "(fraction masked out)"), xlim=(-0.02, 1.02))
    axis.set_title(panel.title, fontsize=9)
    frame = panel.sweep.frame
    two_sets = len({data for data, _ in panel.shown}) > 1
    of_paper = False
    for place, (data, metric) in enumerate(panel.shown):
        own = axis if not place else axis.twinx()
        if place:
            own.spines["right"].set_visible(True)
            own.grid(visible=False)
        label = axis_label(metric)
        own.set_ylabel(Lines(data, label) if two_sets else label, labelpad=2)
        part, scale = frame[frame["metric"] == metric], scale_of(metric)
        for method in panel.sweep.methods:
            cells = part[part["method"] == method]
            if not cells.empty:
                _line(own, cells, method, looks[method], scale, right=bool(place))
        points = gmt_ratios(data, panel.sweep.sets)
        of_paper |= draw_points(own, metric, points, looks)
    return of_paper


def _line(
    axis: Any, frame: pd.DataFrame, method: str, look: Look, scale: float, *, right: bool
) -> None:
    """One method; lines of the right axis are dotted, and have no place in the legend."""
    label = None if right else look.label
    points = spread(frame, ["mask_ratio"], scale)
    mean = points["mean"]
    if not has_ratio(method):
        line = _RIGHT if right else look.line
        axis.axhline(
            float(mean.iloc[0]), color=look.color, linestyle=line, linewidth=1, label=label
        )
        return
    axis.plot(
        mean.index,
        mean,
        color=look.color,
        marker=look.marker,
        markersize=4,
        linewidth=1.4,
        linestyle=":" if right else "-",
        markerfacecolor="white" if right else look.color,
        label=label,
    )
    axis.fill_between(
        mean.index,
        points["low"],
        points["high"],
        color=look.color,
        alpha=0.15,
        linewidth=0,
    )


def _legend(figure: Any, two_axes: bool) -> None:
    from matplotlib.lines import Line2D

    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if two_axes:
        look: dict[str, Any] = {"color": "0.4", "linestyle": ":", "marker": "o", "markersize": 4}
        handles["open, dotted: right axis"] = Line2D([], [], markerfacecolor="white", **look)
    add_legend(figure, handles)
