"""MFT, Figure 1: masks as a third stage after pre-training and fine-tuning (2503.22764), drawn by
us."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deltalens.errors import Lines
from deltalens.figures.diagram import Diagram, example_values, smallest
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.style import BLUE, GREEN, VERMILION, styled

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the method.

    Args:
        folders: none.
        entry: the figure.

    Returns:
        The diagram: pre-training, fine-tuning of all weights, and a learned mask.
    """
    with styled():
        diagram = Diagram(6.8, 2.05)
        base = example_values(1)
        tuned = base + 0.6 * example_values(2)
        scores = example_values(4)
        removed = smallest(scores, 0.2)
        stages = ("Pre-training", "Full fine-tuning (FFT)", "Mask fine-tuning (MFT)")
        for x, name in zip((0.1, 1.5, 3.45), stages, strict=True):
            diagram.title(x, name)
        _, first, _ = diagram.matrix(0.15, 0.5, base, "base", color=BLUE)
        left, right, _ = diagram.matrix(1.85, 0.5, tuned, "all weights updated", color=GREEN)
        diagram.arrow((first + 0.08, 0.875), (left - 0.08, 0.875), "domain data")
        _, end, _ = diagram.matrix(
            3.5, 0.5, tuned, Lines("weights, frozen"), color=GREEN, frozen=True
        )
        diagram.arrow((right + 0.08, 0.875), (3.42, 0.875))
        diagram.words(end + 0.13, 0.77, "⊙", size=12)
        kept = np.where(removed, 0.0, 1.0)
        _, after, _ = diagram.matrix(
            end + 0.26,
            0.5,
            kept,
            Lines("mask, 1 or 0:", "scores are learned"),
            left_out=removed,
            color=VERMILION,
        )
        diagram.words(after + 0.12, 0.77, "=", size=11)
        diagram.matrix(after + 0.24, 0.5, tuned, "the result", color=GREEN, left_out=removed)
        diagram.note(
            "Darker: larger magnitude. Hatched: does not change. Crossed: removed. The gradient "
            "reaches the scores",
            "straight through the mask. The mask ratio is the share that is removed (the paper: "
            "10 % of four blocks).",
        )
        return [Drawing(entry.file_name, diagram.figure)]
