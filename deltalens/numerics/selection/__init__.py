"""The selection of entries by rank: one order over them, one search, and what comes out.

Everybody imports it from here, and from nowhere inside.
"""

from deltalens.numerics.selection.backend import Backend, Units
from deltalens.numerics.selection.counts import Counts, Numbers
from deltalens.numerics.selection.cpu import OnCpu, prepare
from deltalens.numerics.selection.cpu import count as count_tensor
from deltalens.numerics.selection.device import OnDevice, Reduce, numbers_in, row_of
from deltalens.numerics.selection.find import (
    Bracketed,
    Kept,
    Ranked,
    count,
    draw,
    find_boundaries,
    find_boundary,
    find_random_boundaries,
    keep_above,
    keep_highest,
    prepare_keeping,
    rank_units,
)
from deltalens.numerics.selection.keys import (
    Chunk,
    Entries,
    Part,
    Sample,
    Source,
    parts_of,
    sample_stride,
)
from deltalens.numerics.selection.prefix import (
    EVERYTHING,
    NOTHING,
    STRATEGIES,
    Boundary,
    Selection,
    Strategy,
    Tie,
    count_at,
    prefix_size,
)
from deltalens.numerics.selection.windows import Window

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "STRATEGIES",
    "Backend",
    "Boundary",
    "Bracketed",
    "Chunk",
    "Counts",
    "Entries",
    "Kept",
    "Numbers",
    "OnCpu",
    "OnDevice",
    "Part",
    "Ranked",
    "Reduce",
    "Sample",
    "Selection",
    "Source",
    "Strategy",
    "Tie",
    "Units",
    "Window",
    "count",
    "count_at",
    "count_tensor",
    "draw",
    "find_boundaries",
    "find_boundary",
    "find_random_boundaries",
    "keep_above",
    "keep_highest",
    "numbers_in",
    "parts_of",
    "prefix_size",
    "prepare",
    "prepare_keeping",
    "rank_units",
    "row_of",
    "sample_stride",
]
