"""GMT, Table 3: the cost of each method in training speed (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.catalog.methods import row_in_table3
from deltalens.catalog.metrics import HIGHER
from deltalens.errors import RecordError
from deltalens.figures.beside import Pair, beside_block, is_foreign, models_beside
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.loading import load_finite
from deltalens.figures.tables import Block, Entry, TableFigure, draw_table, mark_best, printed
from deltalens.io.papers import PaperTable, as_number, paper_table
from deltalens.io.records import StudyRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_HEADS = (
    "method",
    "samples/s",
    "relative to SFT",
    "method overhead (%)",
    "GFLOP (per micro-batch)",
    "peak memory (MB)",
    "blocks",
)


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw efficiency studies as a table: medians over its repeats, and the paper's rows below.

    Args:
        folders: of the studies, such as one for each model.
        entry: the table.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no efficiency study, or no cell of it is finished.
    """
    records = [load_finite(folder) for folder in folders]
    for record in records:
        if record.kind != "efficiency" or record.cells.empty:
            raise RecordError(f"{record.path}: no efficiency study with finished cells")
    paper = paper_table(entry.file_name)
    notes = [
        "Medians over blocks of steps; the methods take turns. Bold: the fastest. Relative to SFT: "
        "the median of each block's speed over that of SFT's block in the same repeat, in brackets "
        "the 10th and 90th percentile.",
        "Method overhead: the share of a block's time spent in the method itself. FLOPs are counted"
        " by torch for one micro-batch with an optimizer step, and are the same for every method.",
        "Beside the paper: samples per second are of other machines and models, so only speeds "
        "relative to SFT are compared.",
    ]
    paper_notes = (
        f"The paper: {paper.source}. Relative to SFT is computed from the printed speeds.",
        *paper.notes,
    )
    own, of_paper = [*map(_study, records)], _paper(paper)
    beside = [
        replace(both, foreign=is_foreign([record], model))
        for record, block in zip(records, own, strict=True)
        for model in models_beside(record.model, paper.cells)
        if (both := _beside(record, block, of_paper, model)) is not None
    ]
    blocks = (*own, *beside, of_paper)
    return [
        draw_table(TableFigure(entry.file_name, entry.title, blocks, tuple(notes), paper_notes))
    ]


def _study(record: StudyRecord) -> Block:
    names = dict.fromkeys([*record.spec.get("methods", ()), *record.cells["method"]])
    shown = ("samples_per_second", "peak_mb", "hook_share")
    speed, memory, hooks = (_wide(record, metric) for metric in shown)
    # pivot_table leaves out a method without a finite value.
    hooks, memory = (wide.reindex(columns=speed.columns) for wide in (hooks, memory))
    flops = float(record.facts["flops_of_a_step"]) / 1e9
    paired = speed.dropna()
    rows = []
    for name in names:
        label = Entry(row_in_table3(name))
        if name not in speed:
            rows.append((label, *[Entry("–")] * 5, Entry("0")))
            continue
        ratio = paired[name] / paired["sft"] if {"sft", name} <= {*paired} else paired[name][:0]
        rows.append(
            (
                label,
                _median(speed[name], 2),
                _relative(ratio),
                _median(100 * hooks[name], 1),
                Entry(f"{flops:,.2f}", flops),
                _median(memory[name], 0),
                Entry(str(speed[name].count())),
            )
        )
    fastest = mark_best([row[1] for row in rows], 2, HIGHER)
    lines = tuple((row[0], best, *row[2:]) for row, best in zip(rows, fastest, strict=True))
    spec = record.spec
    title = (
        f"This study: {_called(record)}, {record.facts.get('parameters', 0):,} parameters, batches "
        f"of {spec.get('batch_size', '?')}, {spec.get('dtype', '?')}, {spec.get('device', '?')}"
    )
    return Block("study", title, _HEADS, lines)


def _called(record: StudyRecord) -> str:
    """The model, and the folder, which tells what it was trained on."""
    return ", ".join(dict.fromkeys(name for name in (record.model, record.path.name) if name))


def _beside(record: StudyRecord, own: Block, of_paper: Block, model: str) -> Block | None:
    """Speeds relative to SFT, of a study and of one of the paper's models."""
    theirs = {row[2].text: row for row in of_paper.rows if row[0].text == model}
    common = [row for row in own.rows if row[0].text in theirs]
    printed_rows = [theirs[row[0].text] for row in common]
    pairs = [
        Pair(
            _HEADS[1],
            [row[1] for row in common],
            [row[3] for row in printed_rows],
            comparable=False,
        ),
        Pair(_HEADS[2], [row[2] for row in common], [row[-1] for row in printed_rows], form="+.3f"),
    ]
    title = f"Beside the paper ({_called(record)}): {model}"
    return beside_block(title, _HEADS[:1], [(row[0].text,) for row in common], pairs)


def _wide(record: StudyRecord, metric: str) -> pd.DataFrame:
    frame = record.cells[record.cells["metric"] == metric]
    return frame.pivot_table(index="repeat", columns="method", values="value", sort=False)


def _median(values: pd.Series[float], digits: int) -> Entry:
    median = float(values.median())
    return Entry(f"{median:,.{digits}f}", median)


def _relative(ratio: pd.Series[float]) -> Entry:
    if ratio.empty:
        return Entry("–")
    middle, low, high = (float(ratio.quantile(q)) for q in (0.5, 0.1, 0.9))
    return Entry(f"{middle:.3f} [{low:.3f}–{high:.3f}]", middle)


def _paper(table: PaperTable) -> Block:
    """The paper's block with another column: the speed relative to plain fine-tuning's."""
    speed = table.measures[0]
    labels = ["model", "domain", "method"]
    block = printed("The paper", table, labels, table.measures, grouped=2, best=False)
    first = table.cells.groupby(["model", "domain"], sort=False)[speed].transform("first")
    ratios = [
        as_number(each) / as_number(sft)
        for each, sft in zip(table.cells[speed], first, strict=True)
    ]
    rows = tuple(
        (*row, Entry(f"{ratio:.3f}", ratio)) for row, ratio in zip(block.rows, ratios, strict=True)
    )
    return Block("paper", block.title, (*block.heads, "relative to SFT"), rows, 3, 2)
