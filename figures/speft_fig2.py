"""SPEFT, Figure 2: performance over the share of the model that is trained (2412.13488)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import Look
from deltalens.catalog.metrics import leading, scale_of
from deltalens.catalog.variants import variant_of
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_panels import Panel, curve, draw_panels, level
from deltalens.figures.speft_studies import (
    DENSITY_SWEEP,
    TRAINED_SHARE,
    SpeftStudy,
    load_speft,
    speft_look,
)
from deltalens.figures.style import PALETTE

__all__ = ["draw"]

_NOTE = (
    "The paper: Gemma2-2b on GSM8K, LoRA of rank 4 to 128 with α = r, flexible and strict exact "
    "match; the numbers of its figure are lost."
)


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw sweeps over the density: for each data set a panel for each metric, in it a line for
    each method over the share of the model's parameters that it trains. A model as it is, and the
    training of all weights, are levels.

    Args:
        folders: of density sweeps, such as one for each task.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: a folder has no density sweep, or no cell of it is finished.
    """
    studies = load_speft(folders, DENSITY_SWEEP)
    rows = [
        [Panel(study, data, metric) for metric in _leading_first(metrics)]
        for study in studies
        for data, metrics in study.sets.items()
    ]

    def panel(axis: Any, one: Panel) -> None:
        study = one.study
        assert isinstance(study, SpeftStudy)
        frame, scale = study.of(one.data, one.name), scale_of(one.name)
        frame = frame.assign(percent=100 * frame[TRAINED_SHARE].astype(float))
        for method in study.methods:
            cells, look = frame[frame["method"] == method], _look(study, method)
            if _is_level(study, method):
                level(axis, cells, look._replace(line="--"), scale)
            elif not cells.empty:
                curve(axis, cells, "percent", look, scale)
        _percent_axis(axis)

    return [
        draw_panels(
            rows, panel, entry.file_name, xlabel="trained share of the model (%)", note=_NOTE
        )
    ]


def _leading_first(metrics: Sequence[str]) -> list[str]:
    return sorted(metrics, key=lambda metric: metric != leading(metrics))


def _is_level(study: SpeftStudy, method: str) -> bool:
    """Whether a method trains nothing or everything, whatever the density."""
    shares = {*study.frame[study.frame["method"] == method][TRAINED_SHARE].astype(float)}
    return bool(shares) and shares <= {0.0, 1.0}


def _look(study: SpeftStudy, method: str) -> Look:
    """A method's own look; further variants of one have colors of their own."""
    look, own = speft_look(variant_of(method).method), variant_of(method).method
    variants = [one for one in study.methods if variant_of(one).method == own]
    if len(variants) < 2:
        return look
    colors = [look.color, *(color for color in PALETTE if color != look.color)]
    color = colors[variants.index(method) % len(colors)]
    return look._replace(label=f"{look.label}: {study.label(method)}", color=color)


def _percent_axis(axis: Any) -> None:
    """Budgets double from one to the next, so the axis is logarithmic; its numbers are plain."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not any(len(line.get_xdata()) and line.get_marker() != "None" for line in axis.lines):
        return
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
