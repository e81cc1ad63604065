"""How many examples a salience mask needs: masks of parts of the data, beside that of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.errors import RecordError
from deltalens.figures.coinciding import coinciding_note, layered
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.salience_cells import (
    color_of,
    labels_of,
    load_salience,
    metrics_of,
    numbers,
)
from deltalens.figures.style import add_caption, add_legend, new_figure, styled

__all__ = ["draw"]

_HALVES = "halves"
_MARKERS = "osD^vPX*"
_DASHES = ("-", (0, (4, 1.5)), "-.")


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the Jaccard index over the number of examples, and that of two halves.

    Args:
        folders: of the study.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no salience study is there, or no part of the data was measured.
    """
    (folder,) = folders
    record = load_salience(folder)
    found, examples = (numbers(record, "sample", name) for name in ("jaccard", "examples"))
    if not found:
        raise RecordError(f"{record.path}: no part of the calibration data is measured")
    chance = max(numbers(record, "sample", "chance").values())
    metrics = [name for name in metrics_of(record) if any(one == name for one, _ in found)]
    with styled():
        figure = new_figure(3.0, layout="constrained")
        parts, halves = figure.subplots(1, 2, sharey=True, width_ratios=(1.6, 1))
        for index, metric in enumerate(metrics):
            line = _DASHES[index % len(_DASHES)]
            look = {"color": color_of(metric), "marker": _MARKERS[index % len(_MARKERS)]}
            points = sorted(
                (examples[key], found[key])
                for key in found
                if key[0] == metric and key[1] != _HALVES
            )
            if points:
                xs, ys = zip(*points, strict=True)
                style = {"linestyle": line, **layered(parts, line)}
                parts.plot(xs, ys, label=labels_of([metric])[0], **look, **style)
            if (metric, _HALVES) in found:
                halves.bar(index, found[metric, _HALVES], color=look["color"])
        for axes in (parts, halves):
            axes.set_axisbelow(True)
            axes.axhline(chance, color="0.5", linestyle=":", linewidth=1)
        parts.set(
            xscale="log",
            xlabel="examples",
            ylabel="Jaccard index",
            ylim=(0, 1.02),
        )
        ticks = sorted({value for key, value in examples.items() if key[1] != _HALVES})
        parts.set_xticks(ticks, [f"{int(tick):,}" for tick in ticks])
        parts.minorticks_off()
        halves.set_xticks(range(len(metrics)), labels_of(metrics), rotation=40, ha="right")
        every = record.facts.get("examples", 0)
        parts.set_title(f"some examples, with all {every:,}", fontsize=9)
        halves.set_title("two halves, with each other", fontsize=9)
        handles, labels = parts.get_legend_handles_labels()
        add_legend(figure, dict(zip(labels, handles, strict=True)), fontsize=8)
        add_caption(figure, ["Dotted: chance.", coinciding_note([parts])])
        return [Drawing(entry.file_name, figure)]
