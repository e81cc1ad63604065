"""The curves of a training: its loss, its evaluations, the norm of its gradients and its learning
rate, over the optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deltalens.catalog.metrics import axis_label, is_shown, scale_of
from deltalens.errors import RecordError
from deltalens.figures.coinciding import coinciding_note, layered
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_panels import band
from deltalens.figures.mft_studies import parts_of
from deltalens.figures.style import (
    BLUE,
    PALETTE,
    VERMILION,
    add_caption,
    add_legend,
    columns_for,
    new_figure,
    styled,
)
from deltalens.io.records import Measurement, TrainingRecord, load_training

__all__ = ["draw"]

_LARGEST = 1e100
"""Beyond it matplotlib's arithmetic overflows; a training that diverges can log more."""
_MARKERS = "osD^vPX*"
_LINES = ("-", (0, (4, 1.5)), "-.", (0, (1, 1.2)))
_FEW = 40
"""Steps up to which no mean is drawn: each can be seen."""
_LOGGED = {"grad_norm": "gradient norm", "learning_rate": "learning rate"}


class _Scores(NamedTuple):
    """A metric's evaluations, as its axis has them."""

    metric: str
    of_data: Mapping[str, np.ndarray]
    """Data set -> steps, values and standard errors."""


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw a training, finished or not: a panel for the loss, for each metric that it was evaluated
    by (a line for each data set), for the norm of the gradients and for the learning rate, as far
    as it logged them.

    Args:
        folders: of the training.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no training is there, it logged no step, or its metrics are damaged.
    """
    from matplotlib.ticker import MaxNLocator

    (folder,) = folders
    training = load_training(folder)
    logged = training.logged()
    if not logged:
        raise RecordError(f"{training.path}: no step logged yet; nothing to draw")
    scores = _scores(training)
    others = [name for name in _LOGGED if name in logged]
    panels = 1 + len(scores) + len(others)
    across = columns_for(panels)
    down = -(-panels // across)
    smoothed = max(1, len(logged["loss"]) // 20) if len(logged["loss"]) > _FEW else 1
    with styled():
        figure = new_figure(2.3 * down + 0.5, layout="constrained")
        axes = [*figure.subplots(down, across, squeeze=False).flat]
        for spare in axes[panels:]:
            spare.set_visible(False)
        _loss(axes[0], training, logged["loss"], smoothed)
        for axis, each in zip(axes[1:], scores, strict=False):
            _evaluations(axis, each)
        for axis, name in zip(axes[1 + len(scores) :], others, strict=False):
            _norms_or_rates(axis, name, logged[name], smoothed)
        for axis in axes[:panels]:
            axis.set_xlabel("optimizer step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        legend: dict[str, Any] = {}
        for axis in axes[:panels]:
            legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        add_legend(figure, legend if len(legend) > 1 else {})
        add_caption(figure, [*_notes(smoothed, scores), coinciding_note(axes[:panels])])
        return [Drawing(entry.file_name, figure)]


def _notes(smoothed: int, scores: Sequence[_Scores]) -> list[str]:
    errors = any(np.nansum(points[2]) > 0 for each in scores for points in each.of_data.values())
    return [
        f"Pale: each step; strong: the mean of the last {smoothed}." if smoothed > 1 else "",
        "Bands: one standard error to either side." if errors else "",
    ]


def _scores(training: TrainingRecord) -> list[_Scores]:
    """The evaluations by metric; perplexity, which is the loss again, is left out."""
    (only, *_), *_ = training.spec.get("eval_data") or [[""]]
    found: dict[str, dict[str, dict[int, Measurement]]] = {}
    for step, metric, measured in training.evaluations():
        data, name, _ = parts_of(metric, str(only))
        if is_shown(name):
            # The end of a training is measured again if it is resumed there.
            found.setdefault(name, {}).setdefault(data, {})[step] = measured
    return [
        _Scores(name, {data: _points(steps, scale_of(name)) for data, steps in of_data.items()})
        for name, of_data in found.items()
    ]


def _points(steps: Mapping[int, Measurement], scale: float) -> np.ndarray:
    """Steps, values and standard errors, 0 where there is none."""
    rows = [
        (step, scale * _shown(one.value), scale * _shown(one.stderr or 0.0))
        for step, one in sorted(steps.items())
    ]
    return np.array(rows, dtype=float).T


def _shown(value: float) -> float:
    return value if abs(value) < _LARGEST else math.nan


def _loss(axis: Any, training: TrainingRecord, loss: Mapping[int, float], smoothed: int) -> None:
    _curve(axis, loss, BLUE, smoothed, label="training")
    chosen = {
        step: measured
        for step, name, measured in training.evaluations("choosing")
        if name.rpartition("/")[2] == "loss"
    }
    if chosen:
        steps, values, _ = _points(chosen, 1.0)
        style = {"color": VERMILION, "marker": "s", "linestyle": "--", "markersize": 4}
        axis.plot(steps, values, label="rows that choose the checkpoint", **style)
    step = training.facts.get("chosen_step")
    if isinstance(step, int):
        label = f"checkpoint that is kept: step {step:,}"
        axis.axvline(step, color="0.35", linestyle=":", linewidth=1.2, label=label)
    units = training.facts.get("units")
    unit = units.get("loss", "") if isinstance(units, dict) else ""
    axis.set_ylabel(f"loss ({unit})" if unit else "loss")
    axis.set_title("training", fontsize=9)


def _curve(
    axis: Any, values: Mapping[int, float], color: str, smoothed: int, label: str = ""
) -> None:
    """Each step, and a mean of so many steps over it."""
    steps = np.array([*values], dtype=float)
    shown = np.array([_shown(value) for value in values.values()])
    named = label or "_all"
    if smoothed == 1:
        look = {"marker": "o", "markersize": 2.5} if len(steps) <= _FEW else {}
        axis.plot(steps, shown, color=color, linewidth=1.4, label=named, **look)
        return
    axis.plot(steps, shown, color=color, alpha=0.35, linewidth=0.8, label="_each step")
    window = np.ones(smoothed) / smoothed
    mean = np.convolve(shown, window, mode="valid")
    axis.plot(steps[smoothed - 1 :], mean, color=color, linewidth=1.8, label=named)


def _evaluations(axis: Any, scores: _Scores) -> None:
    for index, (data, (steps, values, errors)) in enumerate(scores.of_data.items()):
        color, line = PALETTE[1 + index % (len(PALETTE) - 1)], _LINES[index % len(_LINES)]
        look = {"color": color, "marker": _MARKERS[index % len(_MARKERS)], "linestyle": line}
        label = data or "evaluation"
        axis.plot(steps, values, label=label, **look, **layered(axis, line))
        axis.fill_between(steps, values - errors, values + errors, **band(color, line))
    axis.set_ylabel(axis_label(scores.metric))
    axis.set_title("evaluation", fontsize=9)


def _norms_or_rates(axis: Any, name: str, values: Mapping[int, float], smoothed: int) -> None:
    rate = name == "learning_rate"
    _curve(axis, values, "0.25", 1 if rate else smoothed)
    axis.set_ylabel(_LOGGED[name])
    positive = [value for value in map(_shown, values.values()) if value > 0]
    if not rate and positive and max(positive) > 50 * min(positive):
        axis.set_yscale("log")
    elif rate:
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
