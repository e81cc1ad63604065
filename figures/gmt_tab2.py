"""GMT, Table 2: methods on several data sets, and their average (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.errors import RecordError
from deltalens.figures.beside import beside_note, beside_rows, is_foreign, models_beside
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.gmt_paper import columns_beside
from deltalens.figures.sweep_tables import AVERAGE, in_words, load_sweep, measure, told_apart
from deltalens.figures.tables import Block, TableFigure, draw_table, printed
from deltalens.io.papers import paper_table

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry, ratio: float | None = None) -> list[Drawing]:
    """Draw mask-ratio sweeps on several data sets as a table: for each metric that all sets of a
    study have, the methods' values on each set and the average over the sets; the same beside the
    paper's rows; then the paper's table.

    Args:
        folders: of the studies, such as one for each model.
        entry: the table.
        ratio: the mask ratio at which every method is shown. By default each method is shown at the
            ratio with the best mean average of the first metric: chosen on the data shown.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no mask-ratio sweep, no cell of it is finished, several data sets
            share no metric, or it has no such ratio.
    """
    sweeps, paper = [load_sweep(folder) for folder in folders], paper_table(entry.file_name)
    own: list[Block] = []
    beside: list[Block] = []
    deciding: list[str] = []
    for sweep, where in zip(sweeps, told_apart(sweeps), strict=True):
        shared = sweep.shared_metrics
        if not shared:
            raise RecordError(
                f"{sweep.record.path}: no metric that several data sets have in common"
            )
        averaged = sweep.with_average(shared)
        ratios = averaged.chosen(f"{AVERAGE}/{shared[0]}", ratio)
        deciding.append(f"average {in_words(shared[0])}")
        for name in shared:
            measures = [
                *(measure(f"{data}/{name}", data) for data in sweep.sets),
                measure(f"{AVERAGE}/{name}", "average"),
            ]
            title = f"This study{where}: {measure(name).head}"
            block = averaged.block(title, averaged.frame, ratios, measures)
            own.append(block)
            columns = columns_beside(sweep, measures, paper)
            for model in models_beside(sweep.record.model, paper.cells):
                rows = paper.cells[paper.cells["model"] == model]
                title = f"Beside the paper{where}: {model}"
                both = beside_rows(title, block, sweep.printed_names, columns, rows)
                if both is not None:
                    beside.append(replace(both, foreign=is_foreign([sweep.record], model)))
    paper_block = printed(
        "The paper: general domain (%)", paper, ["model", "method"], paper.measures, grouped=1
    )
    notes = (
        *dict.fromkeys(
            note
            for sweep in sweeps
            for note in sweep.notes(" or ".join(dict.fromkeys(deciding)), ratio)
        ),
        "Averages are taken over the data sets, seed by seed, with equal weights.",
        beside_note(beside),
    )
    paper_notes = (
        f"The paper: {paper.source}; bold: the best of each model's fine-tuned rows.",
        *paper.notes,
    )
    blocks = (*own, *beside, paper_block)
    return [draw_table(TableFigure(entry.file_name, entry.title, blocks, notes, paper_notes))]
