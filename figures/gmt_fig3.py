"""GMT, Figure 3: performance over the drop rate, a line for each strategy (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import axis_label, better_of, is_lower_better, scale_of
from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.loading import load_finite
from deltalens.figures.registry import FigureEntry
from deltalens.figures.style import STRATEGY, new_figure, styled
from deltalens.io.records import StudyRecord
from deltalens.io.tables import is_finite, over_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw a drop study: a panel for each metric with a line for each strategy, the levels of the
    base and the fine-tune, and a shade over the share of unchanged entries.

    The band around `random` reaches from the lowest random order to the highest, and is left out
    with a single order; around the other strategies it is the measurement's standard error.

    Args:
        folders: of the study.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no drop study is there, or no cell of it is finished.
    """
    (folder,) = folders
    record = load_finite(folder)
    if record.kind != "drop-study" or record.cells.empty:
        raise RecordError(f"{record.path}: no drop study with finished cells")
    metrics = list(dict.fromkeys(record.cells["metric"]))
    columns = min(len(metrics), 2 if len(metrics) != 3 else 3)
    lines = -(-len(metrics) // columns)
    with styled():
        figure = new_figure(2.7 * lines + 0.5, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        for axis, metric in zip(axes.flat, metrics, strict=False):
            _panel(axis, record, metric)
        for spare in axes.flat[len(metrics) :]:
            spare.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
        return [Drawing(entry.file_name, figure)]


def _panel(axis: Any, record: StudyRecord, metric: str) -> None:
    frame = record.cells[record.cells["metric"] == metric]
    scale = scale_of(metric)
    base_itself = frame["strategy"] == "base"
    for strategy in dict.fromkeys(frame[~base_itself]["strategy"]):
        _line(axis, frame[frame["strategy"] == strategy], str(strategy), scale)
    at_base = base_itself if record.facts.get("unpaired") else frame["rate"] == 1.0
    for at, label, style in ((frame["rate"] == 0.0, "fine-tuned", ":"), (at_base, "base", "--")):
        ends = frame[at]["value"]
        if not ends.empty and isfinite(ends.iloc[0]):
            level = scale * float(ends.iloc[0])
            axis.axhline(level, color="0.35", linestyle=style, linewidth=1, label=label)
    unchanged = record.facts["unchanged"] / record.facts["entries"]
    if unchanged >= 0.005 and not record.spec["changed_only"]:
        shade = {"facecolor": "0.92", "edgecolor": "none", "zorder": 0}
        axis.axvspan(0, unchanged, label="entries exactly unchanged", **shade)
    if is_lower_better(better_of(metric)) and _spans_decades(frame):
        if float(frame["value"].min()) > 0:
            axis.set_yscale("log")
        else:
            axis.set_yscale("symlog", linthresh=_smallest(frame))
            axis.set_ylim(bottom=0)
    axis.set(xlabel=_rate_label(record), ylabel=axis_label(metric), xlim=(-0.02, 1.02))
    if "/" in metric:
        axis.set_title(metric.rsplit("/", 1)[0], fontsize=9)


def _rate_label(record: StudyRecord) -> str:
    if record.facts.get("unpaired"):
        return "drop rate (of the tensors in both checkpoints)"
    return "drop rate"


def _line(axis: Any, frame: pd.DataFrame, strategy: str, scale: float) -> None:
    seeds = frame.groupby("rate")["value"]
    mean = scale * over_seeds(seeds)
    rates = mean.index
    color, marker = STRATEGY.get(strategy, ("0.2", "x"))
    orders, label = frame["seed"].nunique(), strategy
    if strategy == "random":
        label = f"random ({'1 order' if orders == 1 else f'mean of {orders} orders'})"
    axis.plot(rates, mean, color=color, marker=marker, markersize=4, linewidth=1.4, label=label)
    if orders > 1:
        axis.fill_between(
            rates,
            *(scale * over_seeds(seeds, edge) for edge in ("min", "max")),
            color=color,
            alpha=0.2,
            linewidth=0,
        )
    elif strategy != "random":  # A single random order does not tell how far orders lie apart.
        spread = scale * frame.set_index("rate")["stderr"].reindex(rates).fillna(0.0)
        axis.fill_between(rates, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)


def _spans_decades(frame: pd.DataFrame) -> bool:
    values = frame["value"]
    positive = values[(values > 0) & is_finite(values)]
    return len(positive) > 1 and float(positive.max() / positive.min()) > 100


def _smallest(frame: pd.DataFrame) -> float:
    return float(frame["value"][frame["value"] > 0].min())
