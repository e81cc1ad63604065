"""GMT, Table 1: methods and metrics, one domain at a time (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.catalog.metrics import scale_of
from deltalens.errors import Lines
from deltalens.figures.beside import beside_note, beside_rows, is_foreign, models_beside
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.gmt_paper import columns_beside
from deltalens.figures.sweep_tables import AVERAGE, Sweep, in_words, load_sweep, measure, told_apart
from deltalens.figures.tables import Block, Measure, TableFigure, draw_table, printed
from deltalens.io.papers import PaperTable, paper_table

__all__ = ["draw"]

_BLOCKS = {
    "Code Generation": ("HumanEval", "HumanEval+", "MBPP", "MBPP+", "Average"),
    "Math Reasoning": ("GSM8k", "MATH"),
}


def draw(folders: Sequence[Path], entry: FigureEntry, ratio: float | None = None) -> list[Drawing]:
    """Draw mask-ratio sweeps as a table: for each the methods, with all metrics of its data set, or
    of several sets the leading metric on each and the average; the same beside the paper's rows;
    then the paper's table. The model before the training has a row if the sweep has it (`ft`).

    Args:
        folders: of the studies, such as one for each domain.
        entry: the table.
        ratio: the mask ratio at which every method is shown. By default each method is shown at the
            ratio with the best mean of its block's last metric if that is an average, else its
            first: chosen on the data shown.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no mask-ratio sweep, no cell of it is finished, or it has no such
            ratio.
    """
    sweeps, paper = [load_sweep(folder) for folder in folders], paper_table(entry.file_name)
    own: list[Block] = []
    beside: list[Block] = []
    deciding: list[str] = []
    for sweep, where in zip(sweeps, told_apart(sweeps), strict=True):
        for title, shown, measures in _parts(sweep, where):
            first = measures[-1] if measures[-1].name.startswith(AVERAGE) else measures[0]
            deciding.append(in_words(first.name))
            block = sweep.block(title, shown.frame, shown.chosen(first.name, ratio), measures)
            own.append(block)
            beside += _beside(sweep, where, block, [*measures], paper)
    blocks = (
        *own,
        *beside,
        *(
            printed(
                f"The paper: {domain.lower()} (%)",
                paper,
                ["model", "method"],
                measures,
                {"domain": domain},
                grouped=1,
            )
            for domain, measures in _BLOCKS.items()
        ),
    )
    notes = (
        *dict.fromkeys(
            note
            for sweep in sweeps
            for note in sweep.notes(" or ".join(dict.fromkeys(deciding)), ratio)
        ),
        beside_note(beside),
    )
    paper_notes = (
        f"The paper: {paper.source}; bold: the best of each model's fine-tuned rows.",
        *paper.notes,
    )
    return [draw_table(TableFigure(entry.file_name, entry.title, blocks, notes, paper_notes))]


def _parts(sweep: Sweep, where: str) -> Iterator[tuple[str, Sweep, list[Measure]]]:
    """Title, cells and columns of each block of a study."""
    shared = [name for name in sweep.shared_metrics if scale_of(name) == 100]
    shared = (shared or sweep.shared_metrics)[:1]
    if not shared:
        for name, metrics in sweep.sets.items():
            yield (
                f"This study{where}: {name}",
                sweep,
                [measure(metric, own=sweep.stated) for metric in metrics],
            )
        return
    (name,) = shared
    head = measure(name).head
    columns = [measure(f"{data}/{name}", Lines(data, head), sweep.stated) for data in sweep.sets]
    average = measure(f"{AVERAGE}/{name}", Lines("average", head), sweep.stated)
    yield f"This study{where}: {sweep.trained_on}", sweep.with_average(shared), [*columns, average]


def _beside(
    sweep: Sweep, where: str, own: Block, measures: Sequence[Measure], paper: PaperTable
) -> Iterator[Block]:
    columns = columns_beside(sweep, measures, paper)
    for domain, names in _BLOCKS.items():
        held = {index: name for index, name in columns.items() if name in names}
        if {*held.values()} <= {"Average"}:
            continue
        cells = paper.cells[paper.cells["domain"] == domain]
        for model in models_beside(sweep.record.model, cells):
            title = f"Beside the paper{where}: {model}, {domain.lower()}"
            rows = cells[cells["model"] == model]
            block = beside_rows(title, own, sweep.printed_names, held, rows)
            if block is not None:
                yield replace(block, foreign=is_foreign([sweep.record], model))
