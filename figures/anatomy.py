"""The anatomy of a delta: its size and its concentration by layer and projection, and the
distribution of its entries by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.catalog.layers import block_rank
from deltalens.errors import Lines, RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.layer_names import ticks_for
from deltalens.figures.loading import load_finite
from deltalens.figures.style import add_caption, new_figure, styled
from deltalens.names import block_of, is_block, kind_of, split_block

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

Bins = list[list[int]]
"""Each floor(per_octave * log2|delta|), and the entries there."""

_KINDS = ("attention", "mlp", "expert", "other", "norm")
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The order of the columns: by kind, then as a block computes them."""
_FAINTEST = 1e-4
"""The lowest share of entries on the color scale."""
_MAPS = {
    "relative_norm": ("size", Lines("‖δ‖ / ‖base‖", "(%)")),
    "energy_top_0.1": ("concentration", Lines("‖δ‖² in the largest", "tenth of entries (%)")),
}
"""Metric of a tensor -> the panel's title and the label of its color bar."""
_CAPTION = (
    "δ: fine-tune less base. A block has a cell for each of its projections and norms; a tensor "
    "outside the blocks has one value, drawn across. The colors span the projections, and values "
    "beyond them have the color of the arrow. Evenly spread, a tenth of the entries would hold "
    "10 % of ‖δ‖²."
)


@dataclass(frozen=True)
class _Rows:
    """The layers from top to bottom, and the projections from left to right."""

    names: list[str]
    columns: list[str]
    values: Mapping[tuple[str, str, str], float]
    """Metric, row and column -> per cent; a tensor outside the blocks has the column ``."""
    projections: int
    """How many columns are no norms; they stand on the left."""

    def table(self, metric: str) -> np.ndarray:
        """A metric's cells; NaN where a layer has no such projection."""
        return np.array(
            [
                [
                    self.values.get((metric, name, column if is_block(name) else ""), math.nan)
                    for column in self.columns
                ]
                for name in self.names
            ]
        )


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw an inspection as heatmaps over the layers: the norm of the delta relative to the base's,
    and the share of its squared norm that the largest tenth of the entries holds, for each
    projection; and the distribution of log2|delta|. Tensors outside the blocks are rows above and
    below.

    Args:
        folders: of the inspection.
        entry: the figure.

    Returns:
        The figure; without cells of tensors, as early versions left it, the distribution alone.

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
    lacking = [name for name, bins in histograms.items() if bins and not entries.get(name, 0)]
    if lacking:
        raise RecordError(
            f"{record.path}: its journal lacks the layer {lacking[0]!r}; inspect again"
        )
    rows = _rows(record.cells[record.cells["level"] == "tensor"], histograms)
    maps = [metric for metric in _MAPS if np.isfinite(rows.table(metric)).any()]
    per = record.facts["per_octave"]
    with styled():
        height = min(8.4, max(3.8, 0.17 * len(rows.names) + 2.8))
        figure = new_figure(height, layout="constrained")
        axes = figure.subplots(1, len(maps) + 1, sharey=True, squeeze=False)[0]
        for axis, metric in zip(axes, maps, strict=False):
            title, label = _MAPS[metric]
            _heatmap(figure, axis, rows, metric, label)
            axis.set_title(title, fontsize=9)
        _distribution(figure, axes[-1], rows.names, histograms, per, dict(entries))
        shown, names = ticks_for(rows.names, height - 2.6)
        axes[0].set_yticks(shown, names)
        axes[0].set_ylim(len(rows.names) - 0.5, -0.5)
        for axis in axes:
            axis.grid(visible=False)
            axis.tick_params(labelsize=7)
            for line in _borders(rows.names):
                axis.axhline(line, color="white", linewidth=2.5)
        add_caption(figure, [_CAPTION if maps else ""])
        return [Drawing(entry.file_name, figure)]


def _rows(tensors: pd.DataFrame, histograms: Mapping[str, Bins]) -> _Rows:
    """Sort tensors into rows and columns. Tensors of one column and row, such as a layer's experts,
    have the mean over their entries."""
    names = sorted(dict.fromkeys([*histograms, *map(block_of, tensors["name"])]), key=block_rank)
    every = dict.fromkeys(map(str, tensors["name"]))
    inside = {name: _column(name) for name in every if is_block(block_of(name))}
    kinds = {column: kind_of(name) for name, column in inside.items()}
    columns = sorted(kinds, key=lambda column: _place(column, kinds[column]))
    projections = sum(kind != "norm" for kind in kinds.values())
    sums: dict[tuple[str, str, str], tuple[float, float]] = {}
    for metric, name, value, count in zip(
        *(tensors[column] for column in ("metric", "name", "value", "n")), strict=True
    ):
        if not math.isfinite(value):
            continue
        key = (str(metric), block_of(name), inside.get(name, ""))
        whole, entries = sums.get(key, (0.0, 0.0))
        sums[key] = whole + 100 * value * count, entries + count
    values = {key: whole / entries for key, (whole, entries) in sums.items() if entries}
    return _Rows(names, columns or [""], values, projections)


def _place(column: str, kind: str) -> tuple[int, int]:
    by_kind = _KINDS.index(kind if kind in _KINDS else "other")
    return by_kind, _USUAL.index(column) if column in _USUAL else len(_USUAL)


def _column(name: str) -> str:
    """`q_proj` of `model.layers.7.self_attn.q_proj.weight`; numbers inside a block count as one."""
    _, _, rest = split_block(name)
    parts = [part for part in rest.split(".") if not part.isdecimal() and part != "weight"]
    return ".".join(parts[-2:] if parts[-1:] == ["bias"] else parts[-1:]) or "weight"


def _borders(names: Sequence[str]) -> list[float]:
    """Where blocks and tensors outside them meet."""
    return [
        index + 0.5
        for index, (one, other) in enumerate(pairwise(names))
        if is_block(one) != is_block(other)
    ]


def _heatmap(figure: Any, axis: Any, rows: _Rows, metric: str, label: str) -> None:
    table = rows.table(metric)
    axis.set_facecolor("0.88")
    mesh = axis.pcolormesh(
        np.arange(len(rows.columns) + 1) - 0.5,
        np.arange(len(rows.names) + 1) - 0.5,
        table,
        norm=_scale(table, rows),
        cmap="viridis",
    )
    axis.set_xticks(range(len(rows.columns)), map(_short, rows.columns), rotation=90)
    _color_bar(figure, axis, mesh, label, "both")


def _scale(table: np.ndarray, rows: _Rows) -> Any:
    """Colors over the projections of the blocks; a norm far from them would leave them one color.
    They are logarithmic where values lie far apart."""
    from matplotlib.colors import LogNorm, Normalize

    inside = [index for index, name in enumerate(rows.names) if is_block(name)]
    parts = (table[inside][:, : rows.projections], table)
    finite = next((one for part in parts for one in [part[part > 0]] if one.size), np.array([1.0]))
    low, high = np.percentile(finite, [2, 98])
    if high > 8 * low:
        return LogNorm(low, high)
    return Normalize(low, max(high, 1.001 * low))


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:7]}…{name[-8:]}"


def _color_bar(figure: Any, axis: Any, mesh: Any, label: str, extend: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    bar = figure.colorbar(
        mesh, ax=axis, location="top", extend=extend, aspect=16, shrink=0.9, pad=0.02
    )
    if mesh.norm.vmax <= 100 * mesh.norm.vmin:
        if mesh.norm.vmax > 8 * mesh.norm.vmin:
            bar.set_ticks(_round_between(mesh.norm.vmin, mesh.norm.vmax))
        else:
            bar.locator = MaxNLocator(4)
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.formatter = FuncFormatter(lambda value, place: f"{value:g}")
        bar.update_ticks()
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _round_between(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [part * 10.0**ten for ten in tens for part in (1, 2, 5)]
    return [value for value in every if low <= value <= high]


def _distribution(
    figure: Any,
    axis: Any,
    names: Sequence[str],
    histograms: Mapping[str, Bins],
    per: int,
    entries: Mapping[str, Any],
) -> None:
    """The share of each layer's entries at each log2|delta|, per octave."""
    from matplotlib.colors import LogNorm

    drawn = {name: bins for name, bins in histograms.items() if bins}
    low, high = _range(drawn)
    shares = np.full((len(names), high - low + 1), math.nan)
    for row, name in enumerate(names):
        for bin_, count in drawn.get(name, []):
            if bin_ >= low and count:
                shares[row, bin_ - low] = 100 * count * per / int(entries[name])
    top = max(200 * _FAINTEST, float(np.nanmax(shares)) if np.isfinite(shares).any() else 0.0)
    mesh = axis.pcolormesh(
        np.arange(low, high + 2) / per,
        np.arange(len(names) + 1) - 0.5,
        shares,
        norm=LogNorm(100 * _FAINTEST, top),
        cmap="viridis",
        rasterized=True,
    )
    axis.set_xlabel("log₂ |δ|", fontsize=8)
    axis.set_title("distribution", fontsize=9)
    _color_bar(figure, axis, mesh, Lines("entries per octave", "(%)"), "min")


def _range(drawn: Mapping[str, Bins]) -> tuple[int, int]:
    """The bins to show: without the smallest 0.1 % of the entries, which can trail far to the
    left."""
    counts: dict[int, int] = {}
    for bins in drawn.values():
        for bin_, count in bins:
            counts[bin_] = counts.get(bin_, 0) + count
    if not counts:
        return 0, 0
    seen, least = 0, 0.001 * sum(counts.values())
    for bin_ in sorted(counts):
        seen += counts[bin_]
        if seen >= least:
            return bin_, max(counts)
    return min(counts), max(counts)
