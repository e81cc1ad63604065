"""GMT, Table 1: methods and metrics, one data set at a time (2406.15330v1)."""

from __future__ import annotations

from pathlib import Path

from deltalens.figures.sweep_tables import in_words, load_sweep, measure
from deltalens.figures.tables import TableFigure, printed, write
from deltalens.io.papers import paper_table

__all__ = ["draw"]

_BLOCKS = {
    "Code Generation": ("HumanEval", "HumanEval+", "MBPP", "MBPP+", "Average"),
    "Math Reasoning": ("GSM8k", "MATH"),
}


def draw(folder: str | Path, ratio: float | None = None) -> list[Path]:
    """Write a mask-ratio sweep as a table: for each of its data sets the methods with all metrics,
    and the paper's rows below.

    Args:
        folder: of the study; `gmt_tab1.csv`, `.md`, `.png` and `.svg` are written there.
        ratio: the mask ratio at which every method is shown. Without one it is, per data set and
            method, that of the best mean of the set's first metric: a choice on the data shown.

    Raises:
        RecordError: no such sweep there, no finished cell in it, or no such ratio.
    """
    sweep, paper = load_sweep(folder), paper_table("gmt_tab1")
    blocks = [
        sweep.block(
            f"This study: {name}",
            sweep.frame,
            sweep.chosen(metrics[0], ratio),
            [measure(metric) for metric in metrics],
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
        f"The paper: {paper.source}; bold: the best of a model's fine-tuned rows.",
        *paper.notes,
    )
    table = TableFigure("gmt_tab1", "GMT, Table 1: methods on one task", tuple(blocks), notes)
    return write(table, sweep.record.path)
