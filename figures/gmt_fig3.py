"""GMT, Figure 3: performance over the drop rate, one line per strategy (2406.15330v1)."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import axis_label, better_of, is_lower_better, scale_of
from deltalens.errors import RecordError
from deltalens.figures.drawn import load_drawn
from deltalens.figures.style import STRATEGY, WIDTH, save, styled
from deltalens.io.records import StudyRecord
from deltalens.io.tables import is_finite, over_seeds

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]


def draw(folder: str | Path) -> list[Path]:
    """Draw a drop study: one panel per metric, the level of the base's own model and of the
    fine-tune, and a shade over the share of unchanged entries. Bands: from the lowest random order
    to the highest; none of a single one; of what is not random the measurement's standard error.

    Args:
        folder: of the study; also where `gmt_fig3.png` and `.svg` are written.

    Raises:
        RecordError: no drop study there, or no finished cell in it.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    record = load_drawn(folder)
    if record.kind != "drop-study" or record.cells.empty:
        raise RecordError(f"{record.path}: no drop study with finished cells")
    metrics = list(dict.fromkeys(record.cells["metric"]))
    columns = min(len(metrics), 2 if len(metrics) != 3 else 3)
    lines = -(-len(metrics) // columns)
    with styled():
        figure, axes = plt.subplots(
            lines, columns, figsize=(WIDTH, 2.7 * lines + 0.5), squeeze=False, layout="constrained"
        )
        for place, metric in enumerate(metrics):
            _panel(axes.flat[place], record, metric)
        for spare in axes.flat[len(metrics) :]:
            spare.set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
        return save(figure, record.path, "gmt_fig3")


def _panel(axis: Any, record: StudyRecord, metric: str) -> None:
    frame = record.cells[record.cells["metric"] == metric]
    scale = scale_of(metric)
    own_base = frame["strategy"] == "base"
    for strategy in dict.fromkeys(frame[~own_base]["strategy"]):
        _line(axis, frame[frame["strategy"] == strategy], str(strategy), scale)
    at_base = own_base if record.facts.get("unpaired") else frame["rate"] == 1.0
    for at, label, style in ((frame["rate"] == 0.0, "fine-tuned", ":"), (at_base, "base", "--")):
        ends = frame[at]["value"]
        if not ends.empty and isfinite(ends.iloc[0]):
            level = scale * float(ends.iloc[0])
            axis.axhline(level, color="0.35", linestyle=style, linewidth=1, label=label)
    unchanged = record.facts["unchanged"] / record.facts["entries"]
    if unchanged >= 0.005 and not record.spec["changed_only"]:
        axis.axvspan(
            0, unchanged, facecolor="0.92", edgecolor="none", zorder=0, label="exactly unchanged"
        )
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
        return "drop rate (of the tensors that both have)"
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
    elif strategy != "random":  # How far orders lie apart is not known from one of them.
        spread = scale * frame.set_index("rate")["stderr"].reindex(rates).fillna(0.0)
        axis.fill_between(rates, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)


def _spans_decades(frame: pd.DataFrame) -> bool:
    values = frame["value"]
    positive = values[(values > 0) & is_finite(values)]
    return len(positive) > 1 and float(positive.max() / positive.min()) > 100


def _smallest(frame: pd.DataFrame) -> float:
    return float(frame["value"][frame["value"] > 0].min())
