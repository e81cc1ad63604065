"""Select entries by rank: one order over them, one search, and its results.

Import from here, never from the modules inside.
"""

from deltalens.numerics.selection.backend import Backend, Units
from deltalens.numerics.selection.counts import Counts, TensorStats
from deltalens.numerics.selection.cpu import OnCpu, compile_loops
from deltalens.numerics.selection.device import OnDevice, Reduce, stats_from_row, stats_row
from deltalens.numerics.selection.find import (
    SampledBoundary,
    UnitThresholds,
    count,
    draw,
    find_boundaries,
    find_boundary,
    find_random_boundaries,
    rank_units,
)
from deltalens.numerics.selection.keep import (
    KeptEntries,
    compile_keep_loops,
    keep_above,
    keep_highest,
)
from deltalens.numerics.selection.keys import (
    Chunk,
    Entries,
    Part,
    Sample,
    Source,
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
    drop_count,
    prefix_size,
)
from deltalens.numerics.selection.top import Ties, keep_top
from deltalens.numerics.selection.windows import Window

__all__ = [
    "EVERYTHING",
    "NOTHING",
    "STRATEGIES",
    "Backend",
    "Boundary",
    "Chunk",
    "Counts",
    "Entries",
    "KeptEntries",
    "OnCpu",
    "OnDevice",
    "Part",
    "Reduce",
    "Sample",
    "SampledBoundary",
    "Selection",
    "Source",
    "Strategy",
    "TensorStats",
    "Tie",
    "Ties",
    "UnitThresholds",
    "Units",
    "Window",
    "compile_keep_loops",
    "compile_loops",
    "count",
    "draw",
    "drop_count",
    "find_boundaries",
    "find_boundary",
    "find_random_boundaries",
    "keep_above",
    "keep_highest",
    "keep_top",
    "prefix_size",
    "rank_units",
    "sample_stride",
    "stats_from_row",
    "stats_row",
]
