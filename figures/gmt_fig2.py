"""GMT, Figure 2: performance over the mask ratio (2406.15330v1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from deltalens.catalog.looks import looks_of
from deltalens.catalog.methods import Look, has_ratio
from deltalens.catalog.metrics import axis_label, leading, scale_of
from deltalens.errors import Lines
from deltalens.figures.coinciding import coinciding_note
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.floors import above_floor, floor_note
from deltalens.figures.mft_panels import BANDS, curve, level
from deltalens.figures.mft_studies import check_same_data
from deltalens.figures.paper_points import draw_points, gmt_ratios, points_note
from deltalens.figures.style import add_caption, add_legend, columns_for, new_figure, styled
from deltalens.figures.sweep_tables import Sweep, load_sweep

__all__ = ["draw"]

_PAPER = "GMT's Tables 1, 2 and 4"


class _Panel(NamedTuple):
    """A metric on a data set of a sweep."""

    sweep: Sweep
    data: str
    metric: str


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw mask-ratio sweeps: a panel for each data set and metric, in it a line for each method
    with a band over seeds (of a single one: a standard error to either side), and the level of
    plain fine-tuning.

    Several studies are columns, as the paper's three domains are, with a panel for each data set's
    leading metric; the paper draws the two benchmarks of a domain over each other instead, on two
    axes. A share of which plain fine-tuning has less than 5 % has no panel.

    Args:
        folders: of the studies, such as one for each domain.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: a folder has no mask-ratio sweep, or no cell of it is finished.
    """
    sweeps = [load_sweep(folder) for folder in folders]
    check_same_data([sweep.record for sweep in sweeps])
    grid = _grid([_panels(sweep, leading_only=len(sweeps) > 1) for sweep in sweeps])
    with styled():
        figure = new_figure(2.6 * len(grid) + 0.7, layout="constrained")
        axes = figure.subplots(len(grid), max(map(len, grid)), squeeze=False)
        looks = _looks(sweeps)
        of_paper = []
        for line, row in zip(axes, grid, strict=True):
            for axis, panel in zip_longest(line, row):
                axis.set_visible(panel is not None)
                if panel is not None:
                    of_paper.append(_draw_panel(axis, panel, looks, titled=len(sweeps) > 1))
        legend: dict[str, Any] = {}
        for axis in axes.flat:
            legend |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        add_legend(figure, legend)
        low = [missing for sweep in sweeps for missing in _under_floor(sweep)]
        notes = [floor_note(low), coinciding_note(axes.flat), points_note(any(of_paper), _PAPER)]
        add_caption(figure, [BANDS, *notes])
        return [Drawing(entry.file_name, figure)]


def _panels(sweep: Sweep, *, leading_only: bool) -> list[_Panel]:
    """The panels of a study; beside others, one for each data set if it has several."""
    low = {metric for _, metric in _under_floor(sweep)}
    panels = []
    for data, every in sweep.sets.items():
        metrics = [metric for metric in every if metric not in low]
        if leading_only and len(sweep.sets) > 1:
            metrics = [leading(metrics, sweep.stated) or metrics[0]]
        panels += [_Panel(sweep, data, metric) for metric in metrics]
    return panels


def _under_floor(sweep: Sweep) -> list[tuple[str, str]]:
    """Data set and metric of the shares that plain fine-tuning has hardly any of. A data set keeps
    one metric at least."""
    cells = sweep.frame
    trained = cells[(cells["mask_ratio"] == 0) & (cells["method"] != "ft")]
    plain = trained[trained["method"] == "sft"]
    at = trained if plain.empty else plain
    return [
        (data, metric)
        for data, metrics in sweep.sets.items()
        for metric in metrics
        if metric not in above_floor(metrics, at)
    ]


def _grid(studies: Sequence[Sequence[_Panel]]) -> list[list[_Panel]]:
    """Rows of panels: a column for each study, if all have as many panels and a page is wide
    enough; else one panel after the other."""
    across = columns_for(len(studies))
    if 1 < len(studies) <= across and len({len(panels) for panels in studies}) == 1:
        return [[*row] for row in zip(*studies, strict=True)]
    every = [panel for panels in studies for panel in panels]
    across = columns_for(len(every))
    return [every[start : start + across] for start in range(0, len(every), across)]


def _looks(sweeps: Sequence[Sweep]) -> Mapping[str, Look]:
    """Plain training looks the same whatever it learns by."""
    labels = [method for sweep in sweeps for method in sweep.methods]
    looks = looks_of(labels, on_base=True)
    plain = sweeps[0].record.plain
    return (
        looks
        if plain == "sft" or "sft" not in looks
        else {
            **looks,
            "sft": looks["sft"]._replace(label=plain.upper()),
        }
    )


def _draw_panel(axis: Any, panel: _Panel, looks: Mapping[str, Look], *, titled: bool) -> bool:
    """One panel; whether it has points of the paper."""
    axis.set(xlim=(-0.02, 1.02), xlabel=Lines("mask ratio", "(fraction masked out)"))
    sweep, data, metric = panel
    trained = sweep.trained_on
    axis.set_title(Lines(trained, f"→ {data}") if titled and trained != data else data, fontsize=9)
    name, _, unit = axis_label(metric).partition(" (")
    axis.set_ylabel(Lines(name, f"({unit}") if len(unit) > 8 else axis_label(metric), labelpad=2)
    frame, scale = sweep.frame[sweep.frame["metric"] == metric], scale_of(metric)
    for method in sweep.methods:
        cells = frame[frame["method"] == method]
        if cells.empty:
            continue
        if has_ratio(method):
            curve(axis, cells, "mask_ratio", looks[method], scale)
        else:
            level(axis, cells, looks[method], scale)
    return draw_points(axis, metric, gmt_ratios(data, sweep.sets), looks)
