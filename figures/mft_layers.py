"""Performance by the group of blocks that is masked, or whose delta is dropped: what MFT's Figures
3 and 7 have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deltalens.catalog.methods import REFERENCES, Look
from deltalens.catalog.metrics import scale_of
from deltalens.errors import RecordError
from deltalens.figures.coinciding import layered
from deltalens.figures.drawing import Drawing
from deltalens.figures.mft_panels import Panel, band, draw_panels, level, spread
from deltalens.figures.mft_studies import LOOKS, MftStudy, load_all

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw_layers", "group_sizes"]

# The paper's colors for groups of 4 and 8, for color-blind readers; of each size, as markers are.
_COLORS = ("#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#8C510A")
_KEPT = ("#0072B2", "#D55E00", "#332288", "#117733", "#882255")


class _Swept(NamedTuple):
    """How what is done to a group of blocks is called and drawn."""

    verb: str
    colors: tuple[str, ...]
    markers: str
    line: Any = "-"
    hollow: bool = False


_SWEPT: Mapping[str, _Swept] = {
    "mft": _Swept("MFT,", _COLORS, "^soDv"),
    "drop": _Swept("dropped:", _COLORS, "^soDv"),
    "keep": _Swept("kept:", _KEPT, "vPXdp", (0, (3, 1)), hollow=True),
}
_PAPER = "The paper's own points, on a tenth of its data, stand in its picture alone."
_NOTES = {
    "mft": "Each step of a line spans the blocks that were masked together.",
    "drop": "Each step of a line spans a group of blocks: its delta was dropped, or was the only "
    "one kept.",
}


def group_sizes(folders: Sequence[Path]) -> tuple[list[int], list[int]]:
    """Read how large the groups of blocks in layer sweeps are.

    Args:
        folders: of the studies.

    Returns:
        The sizes that Figure 3 shows, and those that Figure 7 shows, which are half of the model or
        more (the paper: 16 of 32 blocks).

    Raises:
        RecordError: a folder has no layer sweep, or no cell of it is finished.
    """
    studies = load_all(folders, "layer-sweep")
    large = {size for study in studies for size in _sizes(study) if 2 * size >= _blocks(study)}
    every = {size for study in studies for size in _sizes(study)}
    return sorted(every - large), sorted(large)


def draw_layers(folders: Sequence[Path], sizes: Sequence[int], name: str) -> list[Drawing]:
    """Draw sweeps over groups of consecutive blocks: a step over the blocks of each group, with a
    band over seeds, and the levels of the fine-tune, continued fine-tuning and the base.

    Args:
        folders: of the studies.
        sizes: which groups to show, by how many blocks they have.
        name: of the files.

    Returns:
        The figure.

    Raises:
        RecordError: a folder has no layer sweep, no cell of it is finished, or no group has one of
            the sizes.
    """
    studies = load_all(folders, "layer-sweep")
    measured = sorted({size for study in studies for size in _sizes(study)})
    if not {*sizes} & {*measured}:
        present = ", ".join(map(str, measured)) or "none yet"
        wanted = f"of {', '.join(map(str, sizes))} blocks" if sizes else "of this figure's sizes"
        raise RecordError(
            f"{studies[0].path}: no groups {wanted}; sizes that were measured: {present}"
        )
    rows = [
        [Panel(study, data, metric) for metric in metrics]
        for study in studies
        for data, metrics in study.sets.items()
    ]

    def draw(axis: Any, panel: Panel) -> None:
        frame, scale = panel.study.of(panel.data, panel.name), scale_of(panel.name)
        for method in REFERENCES:
            level(axis, frame[frame["method"] == method], LOOKS[method], scale)
        for place, size in enumerate(measured):
            for method, swept in _SWEPT.items():
                cells = frame[(frame["method"] == method) & (frame["size"] == size)]
                if size in sizes and not cells.empty:
                    _steps(axis, cells, _look(swept, size, place), scale, hollow=swept.hollow)
        blocks = _blocks(panel.study)
        axis.set_xlim(-0.5, blocks - 0.5)
        axis.set_xticks(range(0, blocks, -(-blocks // 12)))

    done = {str(method) for study in studies for method in study.frame["method"]}
    note = " ".join([*(text for method, text in _NOTES.items() if method in done), _PAPER])
    return [draw_panels(rows, draw, name, xlabel="block", note=note)]


def _sizes(study: MftStudy) -> set[int]:
    return {int(size) for size in study.frame["size"] if size}


def _blocks(study: MftStudy) -> int:
    """The number of blocks, as the study says; else as far as its groups reach."""
    blocks = study.record.facts.get("blocks")
    if isinstance(blocks, int):
        return blocks
    reached = [_span(str(group))[1] + 1 for group in study.frame["group"] if group]
    # A study without training has facts for each block, by its number.
    return max([*reached, *(int(number) + 1 for number in blocks or ())], default=1)


def _span(group: str) -> tuple[int, int]:
    """First and last block of `4-7`, or of `4`."""
    first, _, last = group.partition("-")
    return int(first), int(last or first)


def _look(swept: _Swept, size: int, place: int) -> Look:
    """Groups of one size: dropped and kept differ in color, marker and line."""
    color, marker = (each[place % len(each)] for each in (swept.colors, swept.markers))
    return Look(f"{swept.verb} {size} block{'s' * (size > 1)}", color, marker, swept.line)


def _steps(axis: Any, frame: pd.DataFrame, look: Look, scale: float, *, hollow: bool) -> None:
    """A step over each group's blocks, with a mark in its middle."""
    points_of = spread(frame, ["group"], scale)
    spans = sorted((*_span(str(group)), str(group)) for group in points_of.index)
    xs: list[float] = []
    points: list[list[float]] = []
    for first, last, group in spans:
        if xs and xs[-1] != first - 0.5:
            xs += 3 * [np.nan]
            points += 3 * [[np.nan] * 3]
        xs += [first - 0.5, (first + last) / 2, last + 0.5]
        points += 3 * [[float(points_of[part][group]) for part in ("mean", "low", "high")]]
    mean, low, high = np.transpose(points)
    axis.plot(
        xs,
        mean,
        color=look.color,
        linestyle=look.line,
        marker=look.marker,
        markevery=(1, 3),
        markerfacecolor="white" if hollow else look.color,
        label=look.label,
        **layered(axis, look.line),
    )
    axis.fill_between(xs, low, high, **band(look.color, look.line))
