"""SPEFT, Figure 1: LoRA beside a sparse adapter (2412.13488), drawn by us."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltalens.errors import Lines
from deltalens.figures.diagram import Diagram, Numbers, example_values, smallest
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.style import GREEN, ORANGE, VERMILION, styled

__all__ = ["draw"]


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the method.

    Args:
        folders: none.
        entry: the figure.

    Returns:
        The diagram: to the left LoRA, to the right the choice of a sparse adapter.
    """
    with styled():
        diagram = Diagram(6.8, 1.95)
        weights = example_values(1)
        _lora(diagram, weights)
        diagram.axis.plot([2.72, 2.72], [0.1, 1.65], color="0.75", linewidth=0.8)
        _sparse(diagram, weights)
        diagram.note("Hatched: frozen. Crossed: not trained, and zero in the adapter.")
        return [Drawing(entry.file_name, diagram.figure)]


def _lora(diagram: Diagram, weights: Numbers) -> None:
    diagram.title(0.1, "LoRA")
    _, end, _ = diagram.matrix(0.15, 0.5, weights, "θ₀, frozen", color=GREEN, frozen=True)
    diagram.words(end + 0.16, 0.77, "+", size=12)
    _, end, _ = diagram.matrix(end + 0.32, 0.5, example_values(7, (6, 2)), "B", color=ORANGE)
    diagram.words(end + 0.12, 0.79, "×", size=10)
    diagram.matrix(end + 0.24, 0.75, example_values(8, (2, 6)), Lines("A, of rank r"), color=ORANGE)


def _sparse(diagram: Diagram, weights: Numbers) -> None:
    diagram.title(2.85, "SPEFT")
    diagram.box(2.85, 0.505, 0.92, 0.74, Lines("salience of", "every weight", "(8 metrics)"))
    diagram.words(3.31, 1.3, Lines("once, or every", "I steps"))
    salience = example_values(9)
    chosen = smallest(salience, 0.8)
    left, end, _ = diagram.matrix(
        4.02, 0.5, salience, Lines("mask: the top ρ"), color=VERMILION, left_out=chosen
    )
    diagram.arrow((3.82, 0.875), (left - 0.05, 0.875))
    left, end, _ = diagram.matrix(5.0, 0.5, weights, "θ₀, frozen", color=GREEN, frozen=True)
    diagram.words(end + 0.1, 0.77, "+", size=11)
    diagram.arrow((4.81, 0.875), (left - 0.04, 0.875))
    diagram.matrix(
        end + 0.2,
        0.5,
        example_values(10),
        Lines("sparse", "adapter θₛₚ"),
        color=VERMILION,
        left_out=chosen,
    )
