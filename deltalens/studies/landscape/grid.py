"""The points of a scan: where they lie, and in which order they are visited."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
"""The mark of a point of the grid; other points carry a model's name."""
_LARGEST = 10_000


class Point(NamedTuple):
    """Coordinates along the two directions; b is 0 on a line."""

    a: float
    b: float


@dataclass(frozen=True)
class Axis:
    """Evenly spread coordinates, both ends among them."""

    low: float
    high: float
    count: int

    @property
    def values(self) -> list[float]:
        """Ascending; the ends exactly."""
        step = (self.high - self.low) / (self.count - 1)
        inner = [self.low + place * step for place in range(1, self.count - 1)]
        # Where the ends lie on either side of 0, rounding must not miss it.
        tiny = 1e-9 * abs(step)
        return [self.low, *(0.0 if abs(value) < tiny else value for value in inner), self.high]


def parse_grid(text: str | int | Sequence[int]) -> tuple[int, ...]:
    """Points along each direction: "25x25" for a plane, "51" for a line.

    Raises:
        DeltaLensError: not one or two numbers, or fewer than 2 points.
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
        raise DeltaLensError(f"grid {text!r}: write 25x25 for a plane, or 51 for a line")
    if not all(2 <= count <= _LARGEST for count in counts):
        raise DeltaLensError(
            f"grid {text!r}: 2 to {_LARGEST:,} points along each direction; a grid of 1 shows "
            "nothing but a single loss"
        )
    return counts


def parse_range(text: str | None) -> tuple[tuple[float, float], ...] | None:
    """Where the axes begin and end: "-1:1" for both, "-1:1,0:2" for one after the other.

    Raises:
        DeltaLensError: not finite numbers, or not ascending.
    """
    if text is None:
        return None
    try:
        ranges = tuple(
            (float(low), float(high)) for low, high in (part.split(":") for part in text.split(","))
        )
    except ValueError:
        ranges = ()
    fits = all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in ranges)
    if len(ranges) not in (1, 2) or not fits:
        raise DeltaLensError(f"range {text!r}: write low:high, or low:high,low:high for a and b")
    return ranges


def common_grid(held: Sequence[int], now: Sequence[int]) -> list[int] | None:
    """The grid that has the points of both, to the last bit: along each axis one cuts the intervals
    of the other in halves (or quarters, ...). None where neither does."""
    if len(held) != len(now):
        return None
    pairs = [(min(pair), max(pair)) for pair in zip(held, now, strict=True)]
    for few, many in pairs:
        parts, rest = divmod(many - 1, few - 1)
        if rest or parts & (parts - 1):
            return None
    return [many for _, many in pairs]


def levels(counts: Sequence[int]) -> list[list[tuple[int, ...]]]:
    """The places of a grid, coarse ones first: every level completes a finer even grid over all of
    it, corners included. Level k has 2^k intervals an axis, as far as the axis has points.

    Args:
        counts: points along each axis.

    Returns:
        For each level the places that it adds, row by row.
    """
    made: list[list[tuple[int, ...]]] = []
    seen: set[tuple[int, ...]] = set()
    intervals = 1
    while True:
        axes = [_spread(count, intervals) for count in counts]
        new = [place for place in _product(axes) if place not in seen]
        if new:
            made.append(new)
            seen.update(new)
        if all(len(axis) == count for axis, count in zip(axes, counts, strict=True)):
            return made
        intervals *= 2


def _spread(count: int, intervals: int) -> list[int]:
    """Places that cut an axis into so many equal parts, rounded; nested as the number doubles."""
    return sorted({round(place * (count - 1) / intervals) for place in range(intervals + 1)})


def _product(axes: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    if not axes:
        yield ()
        return
    for first in axes[0]:
        for rest in _product(axes[1:]):
            yield (first, *rest)


def coarse_to_fine(axes: Sequence[Axis]) -> list[list[Point]]:
    """The grid's points in the order of `levels`."""
    values = [axis.values for axis in axes]
    return [
        [_point([values[axis][place] for axis, place in enumerate(places)]) for places in level]
        for level in levels([axis.count for axis in axes])
    ]


def grid_points(axes: Sequence[Axis]) -> list[Point]:
    """The grid's points row by row."""
    places = _product([range(axis.count) for axis in axes])
    values = [axis.values for axis in axes]
    return [_point([values[axis][at] for axis, at in enumerate(place)]) for place in places]


def _point(coordinates: Sequence[float]) -> Point:
    return Point(coordinates[0], coordinates[1] if len(coordinates) > 1 else 0.0)
