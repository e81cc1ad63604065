"""The points of a scan: their coordinates, and the order in which they are visited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from deltalens.errors import DeltaLensError

__all__ = [
    "GRID",
    "Axis",
    "Point",
    "coarse_to_fine",
    "common_grid",
    "grid_points",
    "levels",
    "parse_grid",
    "parse_range",
]

GRID = "grid"
"""The mark of the points of the grid; all other points are marked with the name of a model."""
_LARGEST = 10_000


class Point(NamedTuple):
    """Coordinates along the two directions; b is 0 on a line."""

    a: float
    b: float


@dataclass(frozen=True)
class Axis:
    """Evenly spaced coordinates, including both ends."""

    low: float
    high: float
    count: int

    @property
    def values(self) -> list[float]:
        """The coordinates, ascending; the ends are exact."""
        step = (self.high - self.low) / (self.count - 1)
        inner = [self.low + index * step for index in range(1, self.count - 1)]
        # If 0 is one of the coordinates, rounding must not move it.
        tiny = 1e-9 * abs(step)
        return [self.low, *(0.0 if abs(value) < tiny else value for value in inner), self.high]


def parse_grid(text: str | int | Sequence[int]) -> tuple[int, ...]:
    """Read the number of points along each direction.

    Args:
        text: "25x25" for a plane, "51" or 51 for a line, or a sequence of numbers.

    Returns:
        One number per direction.

    Raises:
        DeltaLensError: there are not one or two whole numbers, or one is out of range.
    """
    if isinstance(text, int):
        parts: list[str] = [str(text)]
    elif isinstance(text, str):
        parts = text.lower().replace("×", "x").split("x")
    else:
        parts = [str(part) for part in text]
    try:
        counts = tuple(int(part) for part in parts)
    except ValueError:
        counts = ()
    if len(counts) not in (1, 2):
        raise DeltaLensError(
            f"grid {text!r}: give two numbers for a plane (25x25), or one for a line (51)"
        )
    if not all(2 <= count <= _LARGEST for count in counts):
        raise DeltaLensError(
            f"grid {text!r}: must have 2 to {_LARGEST:,} points along each direction"
        )
    return counts


def parse_range(text: str | None) -> tuple[tuple[float, float], ...] | None:
    """Read the ends of the axes.

    Args:
        text: "-1:1" for all axes, "-1:1,0:2" for the first and the second; None: not given.

    Returns:
        (low, high) of each axis; None if not given.

    Raises:
        DeltaLensError: the ends are not finite numbers, or not ascending.
    """
    if text is None:
        return None
    try:
        ranges = tuple(
            (float(low), float(high)) for low, high in (part.split(":") for part in text.split(","))
        )
    except ValueError:
        ranges = ()
    valid = all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in ranges)
    if len(ranges) not in (1, 2) or not valid:
        raise DeltaLensError(
            f"span {text!r}: give low:high, or low:high,low:high for two directions"
        )
    return ranges


def common_grid(recorded: Sequence[int], requested: Sequence[int]) -> list[int] | None:
    """Find the grid that contains all points of two grids over the same ranges, bit for bit.

    Args:
        recorded: points along each axis, in the study's folder.
        requested: points along each axis, of the new call.

    Returns:
        Points along each axis: of the finer grid, if its intervals divide those of the other into
        halves, quarters, ...; None: there is no such grid.
    """
    if len(recorded) != len(requested):
        return None
    pairs = [(min(pair), max(pair)) for pair in zip(recorded, requested, strict=True)]
    for coarse, fine in pairs:
        parts, rest = divmod(fine - 1, coarse - 1)
        if rest or parts & (parts - 1):  # Not a power of two.
            return None
    return [fine for _, fine in pairs]


def levels(counts: Sequence[int]) -> list[list[tuple[int, ...]]]:
    """Order the points of a grid from coarse to fine.

    Every level completes an even grid over the whole range, including the corners. Level k has 2^k
    intervals per axis, or as many as the axis has.

    Args:
        counts: points along each axis.

    Returns:
        For each level, the indices (one per axis) of the points that it adds, row by row.
    """
    result: list[list[tuple[int, ...]]] = []
    seen: set[tuple[int, ...]] = set()
    intervals = 1
    while True:
        axes = [_spread(count, intervals) for count in counts]
        new = [indices for indices in product(*axes) if indices not in seen]
        if new:
            result.append(new)
            seen.update(new)
        if all(len(axis) == count for axis, count in zip(axes, counts, strict=True)):
            return result
        intervals *= 2


def _spread(count: int, intervals: int) -> list[int]:
    """Indices that divide an axis into equal intervals, rounded; doubling the number of intervals
    keeps all of them."""
    return sorted({round(step * (count - 1) / intervals) for step in range(intervals + 1)})


def coarse_to_fine(axes: Sequence[Axis]) -> list[list[Point]]:
    """List the points of a grid in the order of `levels`.

    Args:
        axes: one or two.

    Returns:
        The points of each level.
    """
    values = [axis.values for axis in axes]
    return [
        [_point([values[axis][index] for axis, index in enumerate(indices)]) for indices in level]
        for level in levels([axis.count for axis in axes])
    ]


def grid_points(axes: Sequence[Axis]) -> list[Point]:
    """List the points of a grid row by row.

    Args:
        axes: one or two.

    Returns:
        The points; the last coordinate varies fastest.
    """
    return [_point(coordinates) for coordinates in product(*(axis.values for axis in axes))]


def _point(coordinates: Sequence[float]) -> Point:
    return Point(coordinates[0], coordinates[1] if len(coordinates) > 1 else 0.0)
