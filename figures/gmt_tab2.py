"""GMT, Table 2: methods on several data sets, and their average (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.registry import FigureEntry
from deltalens.figures.sweep_tables import Sweep, in_words, load_sweep, measure
from deltalens.figures.tables import TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw", "shared_metrics"]

_AVERAGE = "average over the data sets"


def draw(folders: Sequence[Path], entry: FigureEntry, ratio: float | None = None) -> list[Drawing]:
    """Draw a mask-ratio sweep on several data sets as a table: for each metric that all of them
    have, the methods' values on each set and the average over the sets; the paper's rows below.

    Args:
        folders: of the study.
        entry: the table.
        ratio: the mask ratio at which every method is shown. By default each method is shown at
            the ratio with the best mean average of the first metric: chosen on the data shown.

    Returns:
        The table.

    Raises:
        RecordError: no mask-ratio sweep is there, no cell of it is finished, several data sets
            share no metric, or it has no such ratio.
    """
    (folder,) = folders
    sweep, paper = load_sweep(folder), paper_table(entry.file_name)
    shared = shared_metrics(sweep)
    if not shared:
        raise RecordError(f"{sweep.record.path}: no metric that several data sets have in common")
    averaged = _with_average(sweep, shared)
    ratios = averaged.chosen(f"{_AVERAGE}/{shared[0]}", ratio)
    blocks = [
        sweep.block(
            f"This study: {measure(name).head}",
            averaged.frame,
            ratios,
            [
                *(measure(f"{data}/{name}", data) for data in sweep.sets),
                measure(f"{_AVERAGE}/{name}", "average"),
            ],
        )
        for name in shared
    ]
    blocks.append(
        printed(
            "The paper: general domain (%)", paper, ["model", "method"], paper.measures, grouped=1
        )
    )
    notes = (
        *sweep.notes(f"average {in_words(shared[0])}", ratio),
        "Averages are taken over the data sets, seed by seed, with equal weights.",
        f"The paper: {paper.source}; bold: the best of each model's fine-tuned rows.",
        *paper.notes,
    )
    return [draw_table(TableFigure(entry.file_name, entry.title, tuple(blocks), notes))]


def shared_metrics(sweep: Sweep) -> list[str]:
    """Find the metrics that can be averaged over data sets.

    Args:
        sweep: with one data set or several.

    Returns:
        The metrics that all data sets have; none if there is a single one.
    """
    first, *others = [
        [metric.rpartition("/")[2] for metric in metrics] for metrics in sweep.sets.values()
    ]
    return [name for name in first if others and all(name in other for other in others)]


def _with_average(sweep: Sweep, shared: list[str]) -> Sweep:
    """The sweep with another data set: the average of all, training by training."""
    import pandas as pd

    parts: list[pd.DataFrame] = [sweep.frame]
    for name in shared:
        averaged = {f"{data}/{name}" for data in sweep.sets}
        mean = (
            sweep.frame[sweep.frame["metric"].isin(averaged)]
            .pivot(index=["method", "mask_ratio", "seed"], columns="metric", values="value")
            .mean(axis=1, skipna=False)
        )
        parts.append(mean.rename("value").reset_index().assign(metric=f"{_AVERAGE}/{name}", n=0))
    return Sweep(sweep.record, pd.concat(parts, ignore_index=True), sweep.methods)
