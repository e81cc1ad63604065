"""Panels of MFT's figures: lines with bands over seeds, and levels to compare them with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deltalens.catalog.methods import Look
from deltalens.catalog.metrics import axis_label
from deltalens.figures.coinciding import coinciding_note, layered
from deltalens.figures.drawing import Drawing
from deltalens.figures.floors import above_floor, floor_note
from deltalens.figures.mft_studies import LOOKS, MftStudy
from deltalens.figures.style import (
    add_caption,
    add_legend,
    columns_for,
    new_figure,
    stacked,
    styled,
)
from deltalens.io.tables import over_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BANDS", "Panel", "band", "curve", "draw_panels", "level", "spread"]

_LONG = 0.6
"""The part of a row's height that an axis has at least."""

BANDS = (
    "Lines: means over seeds. Bands: from the lowest seed to the highest, or with a single seed "
    "the measurement's standard error."
)
"""What lines and bands are, for a caption."""


class Panel(NamedTuple):
    """A metric of a study on a data set."""

    study: MftStudy
    data: str
    name: str


def spread(frame: pd.DataFrame, by: Sequence[str], scale: float) -> pd.DataFrame:
    """Compute lines and bands.

    Args:
        frame: cells with `value` and `stderr`.
        by: the columns that identify a point.
        scale: factor from the records to the axis.

    Returns:
        `mean`, `low` and `high` at each point: the range over seeds, or with a single seed a
        standard error to either side.
    """
    import pandas as pd

    points = frame.groupby(list(by))
    mean, several = over_seeds(points["value"]), points["value"].size() > 1
    error = points["stderr"].mean().fillna(0.0)
    low = over_seeds(points["value"], "min").where(several, mean - error)
    high = over_seeds(points["value"], "max").where(several, mean + error)
    return scale * pd.DataFrame({"mean": mean, "low": low, "high": high})


def band(color: Any, line: Any = "-") -> dict[str, Any]:
    """How a band is filled and edged; the edges, dashed as its line is, tell bands apart where they
    overlap, also in grey.

    Args:
        color: of its line.
        line: the line's style.

    Returns:
        Arguments of matplotlib's `fill_between`.
    """
    from matplotlib.colors import to_rgba

    return {
        "facecolor": to_rgba(color, 0.13),
        "edgecolor": to_rgba(color, 0.6),
        "linewidth": 0.6,
        "linestyle": line,
    }


def curve(axis: Any, frame: pd.DataFrame, x: str, look: Look, scale: float) -> None:
    """Draw a method as a line with a band.

    Args:
        axis: matplotlib's axes.
        frame: the method's cells.
        x: the column of the x-axis.
        look: label, color, marker and line style.
        scale: factor from the records to the axis.
    """
    points = spread(frame, [x], scale)
    style = {"color": look.color, "marker": look.marker, "linestyle": look.line}
    axis.plot(points.index, points["mean"], label=look.label, **style, **layered(axis, look.line))
    axis.fill_between(points.index, points["low"], points["high"], **band(look.color, look.line))


def level(axis: Any, frame: pd.DataFrame, look: Look, scale: float) -> None:
    """Draw a method that does not depend on x: a horizontal line, with a band if there are several
    seeds.

    Args:
        axis: matplotlib's axes.
        frame: the method's cells.
        look: label, color and line style.
        scale: factor from the records to the axis.
    """
    values = frame["value"] * scale
    if values.empty:
        return
    style = {"color": look.color, "linestyle": look.line, "label": look.label}
    mean = float(values.mean(skipna=False))
    if not math.isfinite(mean):
        return
    axis.axhline(mean, linewidth=1.2, zorder=2.6, **style)  # Its dashes show on a curve.
    if len(values) > 1:
        axis.axhspan(values.min(), values.max(), color=look.color, alpha=0.1, linewidth=0)


def draw_panels(
    rows: Sequence[Sequence[Panel]],
    draw: Callable[[Any, Panel], None],
    name: str,
    *,
    xlabel: str,
    note: str | Callable[[], str] = "",
) -> Drawing:
    """Draw a row of panels for each data set, at most two side by side. A share of which no method
    has 5 % has no panel.

    Args:
        rows: the panels. If every row has a single one, they are set two to a row.
        draw: draws a panel on its axes.
        name: of the files.
        xlabel: of all panels.
        note: a sentence under the figure, after the one about the bands; or a function that
            returns it, called once all panels are drawn.

    Returns:
        The figure.
    """
    shown = {panel.study.path: panel.study for row in rows for panel in row}
    rows, low = zip(*map(_above_floor, rows), strict=True)
    titled = _title_of([*shown.values()])
    if all(len(row) == 1 for row in rows):
        alone = [panel for row in rows for panel in row]
        rows = [alone]
    across = columns_for(2)
    rows = [row[start : start + across] for row in rows for start in range(0, len(row), across)]
    columns = max(map(len, rows))
    with styled():
        figure = new_figure(2.5 * len(rows) + 0.9, layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        long = _LONG * figure.get_figheight() / len(rows)
        layout: Any = figure.get_layout_engine()
        layout.set(w_pad=0.08, h_pad=0.06)
        for axis in axes.flat:
            axis.set_visible(False)
        for line, row in zip(axes, rows, strict=True):
            for axis, panel in zip(line, row, strict=False):
                axis.set_visible(True)
                draw(axis, panel)
                axis.set(xlabel=xlabel, ylabel=stacked(axis_label(panel.name), long))
                axis.set_title(titled(panel), fontsize=9)
        _legend(figure)
        said = note if isinstance(note, str) else note()
        floor = floor_note((missing for row in low for missing in row), "by every method")
        add_caption(figure, [BANDS, said, floor, coinciding_note(axes.flat)])
        return Drawing(name, figure)


def _above_floor(row: Sequence[Panel]) -> tuple[list[Panel], list[tuple[str, str]]]:
    """The panels of a data set that say something, and data and metric of the others."""
    study, data, _ = row[0]
    ended = study.frame[(study.frame["data"] == data) & study.frame["step"].isna()]
    means = ended.groupby(["method", "name"])["value"].mean()
    best = means.groupby("name").max().rename_axis("metric").reset_index()
    names = above_floor([panel.name for panel in row], best)
    return (
        [panel for panel in row if panel.name in names],
        [(panel.data, panel.name) for panel in row if panel.name not in names],
    )


def _title_of(studies: Sequence[MftStudy]) -> Callable[[Panel], str]:
    """What tells a figure's panels apart: data; of several studies also what they are trained on;
    and the model, where two are trained on the same."""
    if len(studies) == 1:
        return lambda panel: _short(panel.data, 36)
    models = len({study.trained_on for study in studies}) < len(studies)

    def titled(panel: Panel) -> str:
        study = panel.study
        model = study.record.model if models else ""
        told = model and study.domain in model
        trained = model if told else " ".join(filter(None, (_short(model, 16), study.trained_on)))
        return f"{_short(trained, 24 if model else 18)} → {_short(panel.data, 18)}"

    return titled


def _short(name: str, longest: int) -> str:
    half = longest // 2
    return name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"


def _legend(figure: Any) -> None:
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    order = {look.label: index for index, look in enumerate(LOOKS.values())}
    names = sorted(handles, key=lambda name: order.get(name, len(order)))
    add_legend(figure, {name: handles[name] for name in names})
