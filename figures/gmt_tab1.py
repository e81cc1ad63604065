"""GMT, Table 1: methods and metrics, one data set at a time (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.figures.drawing import Drawing
from deltalens.figures.registry import FigureEntry
from deltalens.figures.sweep_tables import in_words, load_sweep, measure
from deltalens.figures.tables import TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

__all__ = ["draw"]

_BLOCKS = {
    "Code Generation": ("HumanEval", "HumanEval+", "MBPP", "MBPP+", "Average"),
    "Math Reasoning": ("GSM8k", "MATH"),
}


def draw(folders: Sequence[Path], entry: FigureEntry, ratio: float | None = None) -> list[Drawing]:
    """Draw a mask-ratio sweep as a table: for each of its data sets the methods with all metrics;
    the paper's rows below.

    Args:
        folders: of the study.
        entry: the table.
        ratio: the mask ratio at which every method is shown. By default each method is shown, on
            each data set, at the ratio with the best mean of the set's first metric: chosen on the
            data shown.

    Returns:
        The table.

    Raises:
        RecordError: no mask-ratio sweep is there, no cell of it is finished, or it has no such
            ratio.
    """
    (folder,) = folders
    sweep, paper = load_sweep(folder), paper_table(entry.file_name)
    blocks = [
        sweep.block(
            f"This study: {name}",
            sweep.frame,
            sweep.chosen(metrics[0], ratio),
            [measure(metric, own=sweep.stated) for metric in metrics],
        )
        for name, metrics in sweep.sets.items()
    ]
    blocks += [
        printed(
            f"The paper: {domain.lower()} (%)",
            paper,
            ["model", "method"],
            measures,
            {"domain": domain},
            grouped=1,
        )
        for domain, measures in _BLOCKS.items()
    ]
    leading = " or ".join(dict.fromkeys(in_words(m[0]) for m in sweep.sets.values()))
    notes = (
        *sweep.notes(leading, ratio),
        f"The paper: {paper.source}; bold: the best of each model's fine-tuned rows.",
        *paper.notes,
    )
    return [draw_table(TableFigure(entry.file_name, entry.title, tuple(blocks), notes))]
