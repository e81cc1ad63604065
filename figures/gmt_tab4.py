"""GMT, Table 4: the best mask ratio of each task (2406.15330v1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.catalog.methods import has_ratio
from deltalens.catalog.metrics import scale_of
from deltalens.figures.beside import NO_BENCHMARK, Pair, beside_block, is_foreign, models_beside
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.paper_points import gmt_domain
from deltalens.figures.sweep_tables import Sweep, best_ratio, load_sweep, measure, told_apart
from deltalens.figures.tables import (
    Block,
    Entry,
    TableFigure,
    draw_table,
    over_seeds,
    printed,
    printed_entry,
)
from deltalens.io.papers import PaperTable, paper_table

__all__ = ["draw"]

_HEADS = (
    "data",
    "metric",
    "method",
    "best mask ratio (%)",
    "its value",
    "within one standard error (%)",
    "seeds",
)


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the best mask ratios of sweeps as a table: for each data set, metric and method the
    ratio with the best mean, that mean, and the ratios within one standard error of it; the paper's
    ratios below.

    Args:
        folders: of the studies, such as one for each domain.
        entry: the table.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no mask-ratio sweep, or no cell of it is finished.
    """
    sweeps, paper = [load_sweep(folder) for folder in folders], paper_table(entry.file_name)
    named = [*zip(sweeps, _labels(sweeps), strict=True)]
    rows = tuple(
        _row(sweep, labels[name], metric, method)
        for sweep, labels in named
        for name, metrics in sweep.sets.items()
        for metric in metrics
        for method in reversed(sweep.methods)
        if has_ratio(method)
    )
    beside = _beside(named, paper)
    blocks = (
        Block("study", "This study", _HEADS, rows, labels=3, grouped=2),
        *beside,
        printed("The paper", paper, ["model", "domain"], paper.measures, best=False),
    )
    notes = (
        "Best: the mask ratio with the best mean over seeds; ratio 0, plain fine-tuning, is a "
        "candidate. Its value: mean ± standard deviation over seeds.",
        "Within one standard error: the ratios whose mean is that close to the best one, and which "
        "the study cannot tell apart. The standard error is deviation / √seeds, or with a single "
        "seed the measurement's own.",
        *dict.fromkeys(note for sweep in sweeps for note in sweep.unfinished()),
        "Beside the paper: GMT's best ratio by the first score of each data set, and the ratio of "
        "its domain in the paper; the difference is in points."
        if beside
        else NO_BENCHMARK,
    )
    paper_notes = (f"The paper: {paper.source}.", *paper.notes)
    return [draw_table(TableFigure(entry.file_name, entry.title, blocks, notes, paper_notes))]


def _labels(sweeps: Sequence[Sweep]) -> list[dict[str, str]]:
    """For each sweep what its data are called: also what it was trained on, where two sweeps are
    measured on the same."""
    often = Counter(name for sweep in sweeps for name in sweep.sets)
    return [
        {
            name: f"{name}{where}" if where or often[name] == 1 else f"{sweep.trained_on} → {name}"
            for name in sweep.sets
        }
        for sweep, where in zip(sweeps, told_apart(sweeps), strict=True)
    ]


def _beside(named: Sequence[tuple[Sweep, Mapping[str, str]]], paper: PaperTable) -> list[Block]:
    """GMT's best ratio on each of the paper's benchmarks beside its domain's ratio in the paper."""
    (ratio,), labels, ours, theirs = paper.measures, [], [], []
    for sweep, called in named:
        for name, metrics in sweep.sets.items():
            scores = [metric for metric in metrics if scale_of(metric) == 100]
            candidates = sweep.candidates("gmt", scores[0], plain=True) if scores else {}
            cells = paper.cells[paper.cells["domain"] == gmt_domain(name, sweep.sets)]
            for model in models_beside(sweep.record.model, cells) if candidates else ():
                best = 100 * best_ratio(candidates, scores[0], sweep.stated)
                labels.append((called[name], model))
                ours.append(Entry(f"{best:g}", best))
                theirs.append(printed_entry(str(cells[cells["model"] == model][ratio].iloc[0])))
    heads = ("data", "the paper's model")
    block = beside_block("Beside the paper", heads, labels, [Pair(ratio, ours, theirs, form="+g")])
    if block is None:
        return []
    records = [sweep.record for sweep, _ in named]
    foreign = all(is_foreign(records, model) for _, model in labels)
    return [replace(block, foreign=foreign)]


def _row(sweep: Sweep, where: str, metric: str, method: str) -> tuple[Entry, ...]:
    shown = measure(metric, own=sweep.stated)
    labels = (Entry(where), Entry(shown.head), Entry(sweep.label(method)))
    candidates = sweep.candidates(method, metric, plain=True)
    if not candidates:
        return (*labels, *[Entry("–")] * 3, Entry("0"))
    best = best_ratio(candidates, metric, sweep.stated)
    value = over_seeds(candidates[best], shown)
    error = shown.scale * _measured_error(sweep, method, metric, best)
    if value.seeds > 1:
        error = value.deviation / math.sqrt(value.seeds)
    means = {ratio: over_seeds(values, shown).value for ratio, values in candidates.items()}
    near = [r for r, mean in means.items() if r == best or abs(mean - value.value) <= error]
    percent = 100 * best
    return (
        *labels,
        Entry(f"{percent:g}", percent),
        value,
        Entry(", ".join(f"{100 * ratio:g}" for ratio in near)),
        Entry(str(value.seeds), value.seeds),
    )


def _measured_error(sweep: Sweep, method: str, metric: str, ratio: float) -> float:
    frame = sweep.frame
    cells = frame[
        (frame["method"] == method) & (frame["metric"] == metric) & (frame["mask_ratio"] == ratio)
    ]
    return float(cells["stderr"].iloc[0])
