"""The share of each layer's weights that a training removed; masks with a threshold learn it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.figures.coinciding import coinciding_note, layered
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.style import add_caption, new_figure, styled
from deltalens.io.records import load_training
from deltalens.names import split_block

__all__ = ["draw"]

_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C510A", "0.35")
_MARKERS = "os^vDPX*"
_DASHES = ("-", (0, (4, 1.5)), "-.")


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the removed share over the blocks: a line for each projection, and the share of all
    masked layers together.

    Args:
        folders: of a training that removed weights: MFT or one of its baselines.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no training is there, or one that removed no weights.
    """
    (path,) = folders
    facts = load_training(path).facts
    removed = facts.get("removed")
    if not removed:
        raise RecordError(f"{path}: no figure exists for a training that removes no weights")
    with styled():
        figure = new_figure(3.2, layout="constrained")
        axis = figure.subplots()
        for index, (name, points) in enumerate(_lines(removed).items()):
            axis.plot(
                *zip(*sorted(points), strict=True),
                color=_COLORS[index % len(_COLORS)],
                marker=_MARKERS[index % len(_MARKERS)],
                linestyle=_DASHES[index % len(_DASHES)],
                label=name,
                **layered(axis, _DASHES[index % len(_DASHES)]),
            )
        total = facts.get("removed_of_all")
        if isinstance(total, int | float):
            label = f"all masked layers: {100 * total:.2f} %"
            axis.axhline(100 * total, color="0.4", linestyle=":", label=label, zorder=2.6)
        _set_axes(axis)
        add_caption(figure, [coinciding_note([axis])])
        return [Drawing(entry.file_name, figure)]


def _lines(removed: dict[str, float]) -> dict[str, list[tuple[float, float]]]:
    """Projection -> (block, per cent); layers outside the blocks are at -1, left of them."""
    lines: dict[str, list[tuple[float, float]]] = {}
    parts = {name: split_block(name) for name in removed}
    stacks = {stack for stack, number, _ in parts.values() if number >= 0}
    for name, share in removed.items():
        stack, block, label = parts[name]
        if block < 0:
            label = name
        elif len(stacks) > 1:
            label = f"{stack}: {label}"
        lines.setdefault(label or "weight", []).append((block, 100 * share))
    return lines


def _set_axes(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("block")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("removed weights (%)")
    axis.set_ylim(bottom=0)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
