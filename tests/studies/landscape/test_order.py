"""The order of a scan: from a coarse picture of the whole plane to the full grid."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalens.studies.landscape.grid import Axis, coarse_to_fine, grid_points, levels
from tests.support.profile import repeatable

pytestmark = pytest.mark.property

COUNTS = st.lists(st.integers(2, 40), min_size=1, max_size=2)


@repeatable(200)
@given(COUNTS)
def test_every_point_is_visited_once(counts: list[int]) -> None:
    visited = list(itertools.chain(*levels(counts)))
    assert sorted(visited) == list(itertools.product(*map(range, counts)))


@repeatable(200)
@given(COUNTS)
def test_every_level_completes_an_even_grid_with_all_corners(counts: list[int]) -> None:
    seen: set[tuple[int, ...]] = set()
    for number, level in enumerate(levels(counts)):
        assert level == sorted(level), "row by row: a row is formed once a level"
        seen.update(level)
        axes = [sorted({place[axis] for place in seen}) for axis in range(len(counts))]
        assert seen == set(itertools.product(*axes))
        for axis, count in zip(axes, counts, strict=True):
            assert {0, count - 1} <= set(axis)
            gaps = [high - low for low, high in itertools.pairwise(axis)]
            assert max(gaps) - min(gaps) <= 1
            assert len(axis) == min(count, 2**number + 1)


@repeatable(100)
@given(st.integers(8, 60), st.integers(8, 60))
def test_picture_of_the_whole_plane_is_there_after_a_tenth(rows: int, columns: int) -> None:
    tenth = max(4, math.ceil(rows * columns / 10))
    ends = list(itertools.accumulate(map(len, levels([rows, columns]))))
    whole = max(place for place, end in enumerate(ends) if end <= tenth)
    # Intervals an axis: as many as a tenth of the points can make, up to a factor of two.
    assert 2**whole + 1 > math.sqrt(tenth) / 2


@repeatable(100)
@given(st.integers(2, 50), st.floats(-100, 100), st.floats(1e-3, 100))
def test_axis_is_even_ascending_and_ends_where_asked(count: int, low: float, width: float) -> None:
    values = Axis(low, low + width, count).values
    assert (values[0], values[-1], len(values)) == (low, low + width, count)
    assert values == sorted(set(values))


def test_grid_in_the_middle_of_which_the_origin_lies_has_it_exactly() -> None:
    axes = [Axis(-0.3, 0.3, 7), Axis(-1.1, 1.1, 23)]
    assert (0.0, 0.0) in grid_points(axes)
    assert sorted(itertools.chain(*coarse_to_fine(axes))) == sorted(grid_points(axes))
