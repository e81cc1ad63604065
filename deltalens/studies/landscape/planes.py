"""The planes of a scan: their directions, marked points and ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from deltalens.errors import DeltaLensError
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import Mapper
from deltalens.studies.landscape.directions import Combination
from deltalens.studies.landscape.grid import Axis
from deltalens.studies.weights import Weights, read_difference, runs

__all__ = [
    "PLANES",
    "Mark",
    "Shape",
    "axes_of",
    "inner_products",
    "line_through",
    "plane_through",
    "principal_plane",
    "reach",
]

PLANES = ("checkpoints", "line", "random", "trajectory", "hessian")

_COLLINEAR = 1e-4
"""Sine of an angle; at smaller ones, fp32 cannot distinguish three points from three on a line."""
_MARGIN = 0.25
"""Shown around the marks, as a share of their extent."""

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Mark:
    """The position of a checkpoint in the plane."""

    name: str
    role: str
    """origin, b, c, base, or step (of a trajectory)."""
    a: float
    b: float
    distance: float
    """Distance from the plane, in weight space; 0 for a checkpoint in the plane."""


_MARK_FIELDS = [field.name for field in fields(Mark)]


@dataclass(frozen=True)
class Shape:
    """A plane (or line), as the study's records contain it."""

    labels: tuple[str, ...]
    """Labels of the axes."""
    marks: tuple[Mark, ...]
    ranges: tuple[tuple[float, float], ...]
    """Default ranges of the axes."""
    terms: tuple[tuple[float, ...], ...] = ()
    """For each direction between checkpoints: the factors of the differences (model - origin)."""
    statistics: dict[str, Any] | None = None
    """Explained variances, or eigenvalues; the records call it `found`."""

    def directions(self, origin: Weights, others: Sequence[Weights]) -> list[Combination]:
        """Make the directions of a plane between checkpoints.

        Args:
            origin: the weights at the origin.
            others: the weights of the other models, in the order of `terms`.

        Returns:
            One or two directions.
        """
        return [
            Combination(origin, list(zip(others, factors, strict=False))) for factors in self.terms
        ]

    def facts(self) -> dict[str, Any]:
        """Convert to JSON values, for the records.

        Returns:
            JSON values by name.
        """
        return {
            "labels": list(self.labels),
            "marks": [asdict(mark) for mark in self.marks],
            "ranges": [list(ends) for ends in self.ranges],
            "terms": [list(factors) for factors in self.terms],
            "found": self.statistics or {},
        }

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Shape:
        """Read from JSON values.

        Args:
            facts: as `Shape.facts` makes them.

        Returns:
            The plane.
        """
        return cls(
            tuple(facts["labels"]),
            tuple(Mark(*(mark[name] for name in _MARK_FIELDS)) for mark in facts["marks"]),
            tuple((low, high) for low, high in facts["ranges"]),
            tuple(tuple(factors) for factors in facts["terms"]),
            facts["found"],
        )


def inner_products(
    sizes: dict[str, int], origin: Weights, others: Sequence[Weights], mapper: Mapper
) -> Array:
    """Compute all inner products between differences to the origin, in one pass over the files.

    Args:
        sizes: the tensors that take part: name -> entries.
        origin: the weights at the origin.
        others: the weights of N other models, W_i.
        mapper: visits parts of the tensors; the sums do not depend on it.

    Returns:
        (N, N), fp64: G_ij = <W_i - origin, W_j - origin>.
    """
    scratch, count = Scratch(), len(others)

    def visit(part: tuple[str, int, int]) -> Array:
        name, start, stop = part
        rows = scratch.get("rows", torch.float64, count * (stop - start)).view(count, -1)
        first = scratch.get("origin", torch.float64, stop - start)
        origin.read(name, start, first)
        rows.zero_()
        for row, weights in zip(rows, others, strict=True):
            read_difference(weights, first, name, start, row)
        return (rows @ rows.T).numpy()

    parts = [(name, start, stop) for name, size in sizes.items() for start, stop in runs(0, size)]
    total = np.zeros((count, count))
    for products in mapper(visit, parts):
        total += products
    return total


def line_through(products: Array, names: Sequence[str], base: bool) -> Shape:
    """Make the line from the origin through a second checkpoint.

    Args:
        products: inner products of [B, base?] (`inner_products`).
        names: of the origin, B and the base.
        base: whether the last model is the base.

    Returns:
        The line; coordinates are distances in weight space.

    Raises:
        DeltaLensError: origin and B are the same model.
    """
    length = math.sqrt(products[0, 0])
    if not length:
        raise DeltaLensError(_identical(names[0], names[1]))
    marks = [Mark(names[0], "origin", 0.0, 0.0, 0.0), Mark(names[1], "b", length, 0.0, 0.0)]
    if base:
        marks.append(_projected(names[2], products, [(1 / length, 0.0)]))
    label = f"distance from {names[0]} towards {names[1]}"
    factors = (1 / length, *([0.0] * base))
    return Shape((label,), tuple(marks), reach(marks, 1), (factors,))


def plane_through(products: Array, names: Sequence[str], base: bool) -> Shape:
    """Make the plane through three checkpoints, by Gram-Schmidt.

    d1 points from the origin to B; d2 is orthogonal to it and points towards C. Both have norm 1:
    distances in the plane are distances in weight space.

    Args:
        products: inner products of [B, C, base?] (`inner_products`).
        names: of the origin, B, C and the base.
        base: whether the last model is the base.

    Returns:
        The plane.

    Raises:
        DeltaLensError: two models are the same, or all three lie on one line.
    """
    first, second = math.sqrt(products[0, 0]), math.sqrt(products[1, 1])
    for length, other in ((first, 1), (second, 2)):
        if not length:
            raise DeltaLensError(_identical(names[0], names[other]))
    projection = products[0, 1] / first
    height = math.sqrt(max(0.0, products[1, 1] - projection**2))
    if height <= _COLLINEAR * second:
        raise DeltaLensError(
            f"{', '.join(names[:3])} lie on one line (the sine of the angle between them is below "
            f"{_COLLINEAR:g}) and span no plane; scan the line through two of them (plane line)"
        )
    factors = [(1 / first, 0.0), (-projection / (first * height), 1 / height)]
    marks = [
        Mark(names[0], "origin", 0.0, 0.0, 0.0),
        Mark(names[1], "b", first, 0.0, 0.0),
        Mark(names[2], "c", projection, height, 0.0),
    ]
    if base:
        marks.append(_projected(names[3], products, factors))
    labels = (
        f"distance from {names[0]} towards {names[1]}",
        f"distance at a right angle, towards {names[2]}",
    )
    padded = tuple((*pair, *([0.0] * base)) for pair in factors)
    return Shape(labels, tuple(marks), reach(marks, 2), padded)


def _projected(
    name: str,
    products: Array,
    factors: Sequence[tuple[float, ...]],
) -> Mark:
    """The position of the last model in the plane of the others, and its distance from it."""
    last = products[-1, :-1]
    coordinates = [
        float(sum(f * x for f, x in zip(direction, last, strict=False))) for direction in factors
    ]
    rest = float(products[-1, -1]) - sum(c**2 for c in coordinates)
    a, b = (*coordinates, 0.0)[:2]
    return Mark(name, "base", a, b, math.sqrt(max(0.0, rest)))


def principal_plane(
    products: Array,
    names: Sequence[str],
    axes: int,
    base: bool,
) -> Shape:
    """Make the plane through the last checkpoint of a run along the principal components of all its
    checkpoints (Li et al. 2018, section 7).

    Args:
        products: inner products of [earlier checkpoints in order, base?] (`inner_products`), with
            the last checkpoint as the origin.
        names: of the origin, the earlier checkpoints, and the base.
        axes: number of components, 1 or 2.
        base: whether the last model is the base.

    Returns:
        The plane; `statistics` has the share of variance that each component explains.

    Raises:
        DeltaLensError: there are too few checkpoints, or they lie on one line.
    """
    earlier = len(products) - base
    if earlier < axes:
        raise DeltaLensError(
            f"a trajectory in {axes} direction{'s' * (axes > 1)} needs at least {axes + 1} "
            f"checkpoints, and there are {earlier + 1}"
        )
    # The last checkpoint is the origin, and counts as a point: its difference is zero.
    run = np.zeros((earlier + 1, earlier + 1))
    run[1:, 1:] = products[:earlier, :earlier]
    center = np.eye(earlier + 1) - 1 / (earlier + 1)
    values, vectors = np.linalg.eigh(center @ run @ center)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if values[axes - 1] <= _COLLINEAR**2 * values[0] or values[0] == 0:
        raise DeltaLensError(
            f"the {earlier + 1} checkpoints lie on one line and span no plane; scan the line "
            "(plane line), or use a grid of one direction"
        )
    explained = [float(value) for value in values[:axes] / values.sum()]
    factors = []
    for index in range(axes):
        factor = (center @ vectors[:, index])[1:] / math.sqrt(values[index])
        # The sign of an eigenvector is arbitrary: put the run's first checkpoint on the negative
        # side.
        factors.append(factor if products[0, :earlier] @ factor <= 0 else -factor)
    marks = [Mark(names[0], "origin", 0.0, 0.0, 0.0)]
    padded = [tuple((*map(float, factor), *([0.0] * base))) for factor in factors]
    for index, name in enumerate(names[1:]):
        role = "base" if base and index == earlier else "step"
        coordinates = [float(products[index, :earlier] @ factor) for factor in factors]
        rest = float(products[index, index]) - sum(c**2 for c in coordinates)
        a, b = (*coordinates, 0.0)[:2]
        marks.append(Mark(name, role, a, b, math.sqrt(max(0.0, rest))))
    labels = tuple(
        f"principal component {number} ({100 * share:.1f} % of variance)"
        for number, share in enumerate(explained, 1)
    )
    return Shape(labels, tuple(marks), reach(marks, axes), tuple(padded), {"explained": explained})


def reach(marks: Sequence[Mark], axes: int) -> tuple[tuple[float, float], ...]:
    """Choose ranges of equal length with all marks in the middle, and a margin of a quarter of
    their larger extent around them.

    Args:
        marks: at least one.
        axes: 1 or 2.

    Returns:
        (low, high) of each axis, with six significant digits.
    """
    columns = [[mark.a for mark in marks], [mark.b for mark in marks]][:axes]
    half = (0.5 + _MARGIN) * max(max(column) - min(column) for column in columns)
    middles = [(max(column) + min(column)) / 2 for column in columns]
    return tuple(
        (float(f"{middle - half:.6g}"), float(f"{middle + half:.6g}")) for middle in middles
    )


def axes_of(ranges: Sequence[tuple[float, float]], counts: Sequence[int]) -> list[Axis]:
    """Make the axes of a grid.

    Args:
        ranges: (low, high) of each axis.
        counts: points along each axis.

    Returns:
        The axes.
    """
    return [Axis(*ends, count) for ends, count in zip(ranges, counts, strict=True)]


def _identical(first: str, second: str) -> str:
    return f"{first} and {second} are the same model: there is no direction between them"
