"""Several models on the same data: over the steps of their trainings, or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import axis_label, is_shown, scale_of
from deltalens.errors import RecordError
from deltalens.figures.coinciding import coinciding_note, layered
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.floors import ever_above_floor, floor_note
from deltalens.figures.loading import load_finite
from deltalens.figures.mft_panels import band
from deltalens.figures.style import (
    PALETTE,
    add_caption,
    add_legend,
    columns_for,
    fitted,
    new_figure,
    styled,
)
from deltalens.io.escaping import plain
from deltalens.io.tables import is_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_MARKERS = "osD^vPX*"
_NOTE = "Bands and bars: one standard error to either side."
_LINES = ("-", (0, (4, 1.5)), "-.", (0, (1, 1.2)))
_DASHES = ("--", ":", "-.")
_NAMES = 0.3
"""The part of the picture's width that models' names may take."""


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw an evaluation, a panel for each metric. If models are several checkpoints of a training,
    the x-axis is the step, with a line for each training and a level for every other model; else
    there is a point for each model, by name. Bands and bars are one standard error to either side.

    Args:
        folders: of the study.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no evaluation is there, or no model of it is measured.
    """
    (folder,) = folders
    record = load_finite(folder)
    cells = record.cells
    if record.kind != "evaluate" or cells.empty:
        raise RecordError(f"{record.path}: no evaluation with measured models")
    every = [str(name) for name in dict.fromkeys(cells["metric"])]
    wanted = [name for name in every if is_shown(name)] or every
    metrics = ever_above_floor(wanted, cells)
    low = floor_note([("", name) for name in wanted if name not in metrics], "by every model")
    of_training = cells[cells["training"] != ""].groupby("training")["step"]
    by_step = bool((of_training.nunique() > 1).any())
    models = cells["model"].nunique()
    columns = min(columns_for(len(metrics)), 2)
    lines = -(-len(metrics) // columns)
    height = 2.6 if by_step else 0.9 + 0.22 * models
    with styled():
        figure = new_figure(height * lines + 0.5, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharey=False if by_step else "row")
        for axis, metric in zip(axes.flat, metrics, strict=False):
            frame = cells[cells["metric"] == metric]
            scale = scale_of(metric)
            shown = frame.assign(value=scale * frame["value"], stderr=scale * frame["stderr"])
            (_over_steps if by_step else _by_name)(axis, shown, metric)
            if "/" in metric:
                axis.set_title(metric.rsplit("/", 1)[0], fontsize=9)
        for spare in axes.flat[len(metrics) :]:
            spare.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        add_legend(figure, dict(zip(labels, handles, strict=True)))
        bars = _NOTE if is_finite(cells["stderr"]).any() else ""
        add_caption(figure, [bars, coinciding_note(axes.flat), low])
        return [Drawing(entry.file_name, figure)]


def _over_steps(axis: Any, frame: pd.DataFrame, metric: str) -> None:
    in_training = frame["training"] != ""
    names = _short([*frame[in_training]["training"], *frame[~in_training]["model"]])
    trainings = frame[in_training].groupby("training", sort=False)
    for index, (training, own) in enumerate(trainings):
        color, marker = PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)]
        points = own.sort_values("step")
        steps, values = points["step"].astype(float), points["value"]
        line = _LINES[index % len(_LINES)]
        curve: dict[str, Any] = {"color": color, "marker": marker, "linestyle": line}
        axis.plot(steps, values, label=names[str(training)], **curve, **layered(axis, line))
        error = points["stderr"].fillna(0.0)
        axis.fill_between(steps, values - error, values + error, **band(color, line))
    others = frame[~in_training & is_finite(frame["value"])]
    for index, (_, other) in enumerate(others.iterrows()):
        look: dict[str, Any] = {
            "color": "0.35",
            "linestyle": _DASHES[index % len(_DASHES)],
            "linewidth": 1,
        }
        look["zorder"] = 2.6  # Their dashes show on a curve.
        axis.axhline(other["value"], label=names[str(other["model"])], **look)
        if other["stderr"] > 0:
            ends = other["value"] - other["stderr"], other["value"] + other["stderr"]
            axis.axhspan(*ends, color="0.35", alpha=0.08, linewidth=0)
    axis.set(xlabel="training step", ylabel=axis_label(metric))


def _by_name(axis: Any, frame: pd.DataFrame, metric: str) -> None:
    names = _short(frame["model"])
    places = range(len(frame))
    look = {"color": PALETTE[0], "marker": "o", "markersize": 5, "linestyle": "none"}
    axis.errorbar(frame["value"], places, xerr=frame["stderr"].fillna(0.0), capsize=2.5, **look)
    room = _NAMES * axis.figure.get_figwidth()
    shown = [fitted(plain(names[str(model)]), room, 9) for model in frame["model"]]
    axis.set_yticks([*places], shown)
    axis.set_ylim(len(frame) - 0.5, -0.5)  # The first row of the table at the top.
    axis.set_xlabel(axis_label(metric))


def _short(names: Sequence[str] | pd.Series[str]) -> Mapping[str, str]:
    """Names without the folders that all of them are in."""
    parts = {str(name): str(name).split("/") for name in names}
    common = 0
    while (
        all(len(each) > common + 1 for each in parts.values())
        and len({each[common] for each in parts.values()}) == 1
    ):
        common += 1
    return {name: "/".join(each[common:]) for name, each in parts.items()}
