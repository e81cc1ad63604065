"""The anatomy of a delta: the distribution of |delta| and the curve of its energy, by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.loading import load_finite
from deltalens.figures.registry import FigureEntry
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
        raise RecordError(f"{record.path}: no inspection of a delta")
    layers = record.cells[record.cells["level"] == "layer"]
    entries = layers.drop_duplicates("name").set_index("name")["n"]
    drawn = {name: bins for name, bins in histograms.items() if bins}
    lacking = [name for name in drawn if not entries.get(name, 0)]
    if lacking:
        raise RecordError(
            f"{record.path}: its journal lacks the layer {lacking[0]!r}: inspect again"
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
            xlabel="largest entries taken (share)",
            ylabel="share of ‖δ‖²",
            xscale="log",
            xlim=(1e-4, 1),
            ylim=(0, 1.02),
        )
        _legend(figure, list(drawn))
        return [Drawing(entry.file_name, figure)]


def _range(drawn: dict[str, Bins], per_octave: int) -> tuple[float, float]:
    """All of log2|delta| but the smallest 0.1 %, which can trail far to the left."""
    counts: dict[int, int] = {}
    for bins in drawn.values():
        for place, count in bins:
            counts[place] = counts.get(place, 0) + count
    seen, least = 0, 0.001 * sum(counts.values())
    low = min(counts)
    for place in sorted(counts):
        seen += counts[place]
        if seen >= least:
            low = place
            break
    return low / per_octave - 0.5, (max(counts) + 1) / per_octave + 0.5


def _colors(names: list[str]) -> list[Any]:
    """Blocks from dark to light in their order; what lies outside the blocks in gray."""
    import matplotlib as mpl

    blocks = [name for name in names if is_block(name)]
    shades = mpl.colormaps["viridis"]
    order = {name: shades(0.9 * i / max(1, len(blocks) - 1)) for i, name in enumerate(blocks)}
    return [order.get(name, "0.65") for name in names]


def _curves(density: Any, energy: Any, bins: Bins, per: int, entries: int, color: Any) -> None:
    places = range(bins[0][0], bins[-1][0] + 1)
    counts = dict((place, count) for place, count in bins)
    heights = [counts.get(place, 0) * per / entries for place in places]
    density.step([p / per for p in places], heights, where="post", color=color, linewidth=1)
    top = 2 * bins[-1][0] / per
    squares = [(count, count * 2 ** (2 * (p + 0.5) / per - top)) for p, count in reversed(bins)]
    whole = math.fsum(square for _, square in squares)
    taken, held, xs, ys = 0, 0.0, [], []
    for count, square in squares:
        taken, held = taken + count, held + square
        xs.append(taken / entries)
        ys.append(held / whole)
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
