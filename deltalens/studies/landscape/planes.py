"""The planes of a scan: their directions, the marked points, and how far they reach."""

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
    "Model",
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
"""Sine of the angle under which three points lie on a line, as far as fp32 can tell."""
_MARGIN = 0.25
"""Of the marks' extent, shown around them."""


@dataclass(frozen=True)
class Model:
    """A checkpoint that takes part in making a plane."""

    name: str
    weights: Weights


@dataclass(frozen=True)
class Mark:
    """A checkpoint's place in the plane."""

    name: str
    role: str
    """origin, b, c, base, or step (of a trajectory)."""
    a: float
    b: float
    distance: float
    """From the plane, in weight space; 0 for one that lies in it."""


_OF_A_MARK = [field.name for field in fields(Mark)]


@dataclass(frozen=True)
class Shape:
    """A plane (or line) as its study's facts hold it."""

    labels: tuple[str, ...]
    """Of the axes."""
    marks: tuple[Mark, ...]
    ranges: tuple[tuple[float, float], ...]
    """What the axes reach over, if not asked otherwise."""
    terms: tuple[tuple[float, ...], ...] = ()
    """Each direction as factors of the differences (model - origin)."""
    found: dict[str, Any] | None = None
    """Explained variance, or eigenvalues."""

    def directions(self, origin: Weights, others: Sequence[Weights]) -> list[Combination]:
        """The directions between checkpoints."""
        return [
            Combination(origin, list(zip(others, factors, strict=False))) for factors in self.terms
        ]

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "labels": list(self.labels),
            "marks": [asdict(mark) for mark in self.marks],
            "ranges": [list(ends) for ends in self.ranges],
            "terms": [list(factors) for factors in self.terms],
            "found": self.found or {},
        }

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Shape:
        """From JSON values."""
        return cls(
            tuple(facts["labels"]),
            tuple(Mark(*(mark[name] for name in _OF_A_MARK)) for mark in facts["marks"]),
            tuple((low, high) for low, high in facts["ranges"]),
            tuple(tuple(factors) for factors in facts["terms"]),
            facts["found"],
        )


def inner_products(
    sizes: dict[str, int], origin: Weights, others: Sequence[Weights], mapper: Mapper
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """G with G_ij = <W_i - origin, W_j - origin>, summed in fp64: (N, N) of N others.

    One pass over the files.

    Args:
        sizes: the tensors that take part: name -> entries.
        origin, others: the weights.
        mapper: how to visit the parts; the sums do not depend on it.
    """
    scratch, count = Scratch(), len(others)

    def visit(part: tuple[str, int, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
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
    for found in mapper(visit, parts):
        total += found
    return total


def line_through(
    products: np.ndarray[Any, np.dtype[np.float64]], names: Sequence[str], base: bool
) -> Shape:
    """The line from the origin through a second checkpoint.

    Args:
        products: of [B, base?], as `inner_products` gives them.
        names: of the origin, B and the base.
        base: whether the last of them is the base.

    Raises:
        DeltaLensError: the two are the same.
    """
    length = math.sqrt(products[0, 0])
    if not length:
        raise DeltaLensError(_same(names[0], names[1]))
    marks = [Mark(names[0], "origin", 0.0, 0.0, 0.0), Mark(names[1], "b", length, 0.0, 0.0)]
    if base:
        marks.append(_projected(names[2], products, [(1 / length, 0.0)]))
    label = f"distance from {names[0]} towards {names[1]}"
    factors = (1 / length, *([0.0] * base))
    return Shape((label,), tuple(marks), reach(marks, 1), (factors,))


def plane_through(
    products: np.ndarray[Any, np.dtype[np.float64]], names: Sequence[str], base: bool
) -> Shape:
    """The plane through three checkpoints, by Gram-Schmidt: d1 points from the origin to B, d2 at
    a right angle to it towards C, both of length 1: distances in the plane are distances in weight
    space.

    Args:
        products: of [B, C, base?], as `inner_products` gives them.
        names: of the origin, B, C and the base.
        base: whether the last of them is the base.

    Raises:
        DeltaLensError: two are the same, or all three lie on a line.
    """
    first, second = math.sqrt(products[0, 0]), math.sqrt(products[1, 1])
    for length, other in ((first, 1), (second, 2)):
        if not length:
            raise DeltaLensError(_same(names[0], names[other]))
    along = products[0, 1] / first
    height = math.sqrt(max(0.0, products[1, 1] - along**2))
    if height <= _COLLINEAR * second:
        raise DeltaLensError(
            f"{', '.join(names[:3])} lie on one line (the angle between them is below "
            f"{_COLLINEAR:g}) and span no plane; look at two of them with --plane line"
        )
    factors = [(1 / first, 0.0), (-along / (first * height), 1 / height)]
    marks = [
        Mark(names[0], "origin", 0.0, 0.0, 0.0),
        Mark(names[1], "b", first, 0.0, 0.0),
        Mark(names[2], "c", along, height, 0.0),
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
    products: np.ndarray[Any, np.dtype[np.float64]],
    factors: Sequence[tuple[float, ...]],
) -> Mark:
    """The last model's place in the plane of the others, and its distance from it."""
    own = products[-1, :-1]
    coordinates = [
        float(sum(f * x for f, x in zip(direction, own, strict=False))) for direction in factors
    ]
    rest = float(products[-1, -1]) - sum(c**2 for c in coordinates)
    a, b = (*coordinates, 0.0)[:2]
    return Mark(name, "base", a, b, math.sqrt(max(0.0, rest)))


def principal_plane(
    products: np.ndarray[Any, np.dtype[np.float64]],
    names: Sequence[str],
    axes: int,
    base: bool,
) -> Shape:
    """The plane through the last checkpoint of a run along the principal components of all of them
    (Li et al. 2018, section 7), with the share of variance each explains.

    Args:
        products: of [earlier checkpoints in turn, base?], as `inner_products` gives them, with the
            run's last checkpoint as the origin.
        names: of the origin, then of the earlier ones, then of the base.
        axes: 1 or 2.
        base: whether the last of them is the base.

    Raises:
        DeltaLensError: too few checkpoints, or they lie on one line.
    """
    earlier = len(products) - base
    if earlier < axes:
        raise DeltaLensError(
            f"a trajectory in {axes} direction{'s' * (axes > 1)} needs at least {axes + 1} "
            f"checkpoints, and there are {earlier + 1}"
        )
    # The last checkpoint is the origin: its own difference is zero, and it counts as a point.
    run = np.zeros((earlier + 1, earlier + 1))
    run[1:, 1:] = products[:earlier, :earlier]
    center = np.eye(earlier + 1) - 1 / (earlier + 1)
    values, vectors = np.linalg.eigh(center @ run @ center)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    if values[axes - 1] <= _COLLINEAR**2 * values[0] or values[0] == 0:
        raise DeltaLensError(
            f"the {earlier + 1} checkpoints lie on one line and span no plane; look at it with "
            "--plane line, or with a grid of one direction"
        )
    explained = [float(value) for value in values[:axes] / values.sum()]
    factors = []
    for place in range(axes):
        factor = (center @ vectors[:, place])[1:] / math.sqrt(values[place])
        # Eigenvectors have no sign: the run's first checkpoint lies on the negative side.
        factors.append(factor if products[0, :earlier] @ factor <= 0 else -factor)
    marks = [Mark(names[0], "origin", 0.0, 0.0, 0.0)]
    padded = [tuple((*map(float, factor), *([0.0] * base))) for factor in factors]
    for place, name in enumerate(names[1:]):
        role = "base" if base and place == earlier else "step"
        coordinates = [float(products[place, :earlier] @ factor) for factor in factors]
        rest = float(products[place, place]) - sum(c**2 for c in coordinates)
        a, b = (*coordinates, 0.0)[:2]
        marks.append(Mark(name, role, a, b, math.sqrt(max(0.0, rest))))
    labels = tuple(
        f"principal component {place} ({100 * share:.1f} % of variance)"
        for place, share in enumerate(explained, 1)
    )
    return Shape(labels, tuple(marks), reach(marks, axes), tuple(padded), {"explained": explained})


def reach(marks: Sequence[Mark], axes: int) -> tuple[tuple[float, float], ...]:
    """A square (or a stretch) with all marks in its middle, and a quarter of their larger extent
    around them; at six digits."""
    columns = [[mark.a for mark in marks], [mark.b for mark in marks]][:axes]
    half = (0.5 + _MARGIN) * max(max(column) - min(column) for column in columns)
    middles = [(max(column) + min(column)) / 2 for column in columns]
    return tuple(
        (float(f"{middle - half:.6g}"), float(f"{middle + half:.6g}")) for middle in middles
    )


def axes_of(ranges: Sequence[tuple[float, float]], counts: Sequence[int]) -> list[Axis]:
    """The axes of a grid."""
    return [Axis(*ends, count) for ends, count in zip(ranges, counts, strict=True)]


def _same(one: str, other: str) -> str:
    return f"{one} and {other} are the same model: there is no direction between them"
