"""GMT, Figure 1: the method beside dropping deltas once (2406.15330v1), drawn by us."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltalens.errors import Lines
from deltalens.figures.diagram import SIDE, Diagram, example_values, smallest
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.style import BLUE, ORANGE, VERMILION, styled

__all__ = ["draw"]

_SHARE = 0.5


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the method.

    Args:
        folders: none.
        entry: the figure.

    Returns:
        The diagram: to the left one-off drop, to the right a step with a masked gradient.
    """
    with styled():
        diagram = Diagram(6.8, 2.85)
        _one_off_drop(diagram)
        diagram.axis.plot([2.55, 2.55], [0.1, 2.65], color="0.75", linewidth=0.8)
        _masked_gradient(diagram)
        diagram.note("Darker: larger magnitude. Crossed: put back to the base, or not updated.")
        return [Drawing(entry.file_name, diagram.figure)]


def _one_off_drop(diagram: Diagram) -> None:
    diagram.title(0.1, "One-off drop, after the training")
    delta = example_values(3)
    by_chance = np.random.default_rng(5).permutation(SIDE**2).reshape(delta.shape) < SIDE**2 / 2
    _, right, middle = diagram.matrix(0.15, 1.0, delta, Lines("delta:", "fine-tuned − base"))
    for top, left_out, name in (
        (0.45, smallest(delta, _SHARE), "trivial: smallest first"),
        (1.62, by_chance, "random"),
    ):
        left, _, at = diagram.matrix(1.5, top, delta, name, left_out=left_out)
        diagram.arrow((right + 0.06, middle), (left - 0.06, at))


def _masked_gradient(diagram: Diagram) -> None:
    diagram.title(2.7, "Gradient-Mask Tuning, in every step")
    parts = [example_values(seed) for seed in (11, 12, 13)]
    gradient = np.mean(parts, axis=0)
    for place, part in enumerate(parts):
        x = 2.75 + 0.1 * place
        named = Lines("gradients of", "N micro-batches") if place == 2 else ""
        _, right, _ = diagram.matrix(x, 0.9 + 0.1 * place, part, named, color=ORANGE)
    left, end, _ = diagram.matrix(4.2, 1.0, gradient, Lines("mean gradient Γ"), color=ORANGE)
    diagram.arrow((right + 0.05, 1.375), (left - 0.05, 1.375), "mean")
    masked = smallest(gradient, _SHARE)
    left, right, _ = diagram.matrix(
        5.55, 1.0, gradient, Lines("masked gradient:", "|Γ| ≥ T stays"), color=BLUE, left_out=masked
    )
    diagram.arrow((end + 0.05, 1.375), (left - 0.05, 1.375), "top k")
    diagram.arrow(((left + right) / 2, 2.14), ((left + right) / 2, 2.36))
    diagram.words((left + right) / 2, 2.38, "optimizer step", color=VERMILION, fontweight="bold")
