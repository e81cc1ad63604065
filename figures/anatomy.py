"""The anatomy of a delta, by layer: the distribution of |delta|, and the share of the squared norm
that its largest entries hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.loading import load_finite
from deltalens.figures.style import new_figure, styled
from deltalens.names import is_block

__all__ = ["draw"]

Bins = list[list[int]]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw an inspection: left the density of log2|delta| per layer, right how much of the
    delta's squared norm its largest entries hold.

    Args:
        folders: of the inspection.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no inspection is there.
    """
    (folder,) = folders
    record = load_finite(folder)
    histograms: dict[str, Bins] = record.facts.get("histograms", {})
    if record.kind != "inspect" or not histograms:
        raise RecordError(f"{record.path}: no inspection with finished cells")
    layers = record.cells[record.cells["level"] == "layer"]
    entries = layers.drop_duplicates("name").set_index("name")["n"]
    drawn = {name: bins for name, bins in histograms.items() if bins}
    lacking = [name for name in drawn if not entries.get(name, 0)]
    if lacking:
        raise RecordError(
            f"{record.path}: its journal lacks the layer {lacking[0]!r}; inspect again"
        )
    with styled():
        figure = new_figure(3.1, layout="constrained")
        density, energy = figure.subplots(1, 2)
        for (name, bins), color in zip(drawn.items(), _colors(list(drawn)), strict=True):
            _curves(density, energy, bins, record.facts["per_octave"], int(entries[name]), color)
        density.set(
            xlabel="log₂ |δ|",
            ylabel="share of entries per octave",
            xlim=_range(drawn, record.facts["per_octave"]),
        )
        energy.set(
            xlabel="share of entries, largest first",
            ylabel="share of ‖δ‖² that they hold",
            xscale="log",
            xlim=(1e-4, 1),
            ylim=(0, 1.02),
        )
        _legend(figure, list(drawn))
        return [Drawing(entry.file_name, figure)]


def _range(drawn: dict[str, Bins], per_octave: int) -> tuple[float, float]:
    """The range of log2|delta| without the smallest 0.1 %, which can trail far to the left."""
    counts: dict[int, int] = {}
    for bins in drawn.values():
        for bin_, count in bins:
            counts[bin_] = counts.get(bin_, 0) + count
    seen, least = 0, 0.001 * sum(counts.values())
    low = min(counts)
    for bin_ in sorted(counts):
        seen += counts[bin_]
        if seen >= least:
            low = bin_
            break
    return low / per_octave - 0.5, (max(counts) + 1) / per_octave + 0.5


def _colors(names: list[str]) -> list[Any]:
    """Blocks from dark to light in their order; layers outside the blocks in gray."""
    import matplotlib as mpl

    blocks = [name for name in names if is_block(name)]
    shades = mpl.colormaps["viridis"]
    order = {name: shades(0.9 * i / max(1, len(blocks) - 1)) for i, name in enumerate(blocks)}
    return [order.get(name, "0.65") for name in names]


def _curves(density: Any, energy: Any, bins: Bins, per: int, entries: int, color: Any) -> None:
    """Draw one layer; a bin is [floor(per * log2|delta|), entries]."""
    drawn = range(bins[0][0], bins[-1][0] + 1)
    counts = dict((bin_, count) for bin_, count in bins)
    heights = [counts.get(bin_, 0) * per / entries for bin_ in drawn]
    density.step([bin_ / per for bin_ in drawn], heights, where="post", color=color, linewidth=1)
    top = 2 * bins[-1][0] / per  # Relative to the largest, no square overflows.
    squares = [
        (count, count * 2 ** (2 * (bin_ + 0.5) / per - top)) for bin_, count in reversed(bins)
    ]
    whole = math.fsum(square for _, square in squares)
    counted, summed, xs, ys = 0, 0.0, [], []
    for count, square in squares:
        counted, summed = counted + count, summed + square
        xs.append(counted / entries)
        ys.append(summed / whole)
    energy.plot(xs, ys, color=color, linewidth=1)


def _legend(figure: Any, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    colors = dict(zip(names, _colors(names), strict=True))
    blocks = [name for name in names if is_block(name)]
    shown = blocks if len(blocks) <= 4 else [blocks[0], blocks[len(blocks) // 2], blocks[-1]]
    lines = [Line2D([], [], color=colors[name], label=name) for name in shown]
    if len(blocks) < len(names):
        lines.append(Line2D([], [], color="0.65", label="outside the blocks"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
