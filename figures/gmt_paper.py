"""Which columns and models of GMT's tables belong to a study."""

from __future__ import annotations

from collections.abc import Sequence

from deltalens.figures.paper_points import benchmark_of, by_benchmark
from deltalens.figures.sweep_tables import AVERAGE, Sweep
from deltalens.figures.tables import Measure
from deltalens.io.papers import PaperTable

__all__ = ["columns_beside"]

_LABELS = 2
"""Columns of a study's block that name its rows: method and mask ratio."""


def columns_beside(sweep: Sweep, measures: Sequence[Measure], paper: PaperTable) -> dict[int, str]:
    """Find the paper's columns for those of a study, by the names of the data.

    Args:
        sweep: the study.
        measures: its columns of numbers; those in per cent can be compared.
        paper: the paper's table.

    Returns:
        Index of a column of the study's block -> the paper's column. The average is only compared
        if the study has all of the table's benchmarks.
    """
    of_benchmark = by_benchmark(paper.measures)
    found: dict[int, str] = {}
    for index, one in enumerate(measures):
        if one.scale != 100:
            continue
        data = one.name.rpartition("/")[0] or next(iter(sweep.sets))
        name = "" if data == AVERAGE else of_benchmark.get(benchmark_of(data), "")
        if name and name not in found.values():
            found[_LABELS + index] = name
    averaged = _averaged(paper)
    if measures[-1].name.startswith(AVERAGE) and {*found.values()} == averaged:
        found[_LABELS + len(measures) - 1] = "Average"
    return found


def _averaged(paper: PaperTable) -> set[str]:
    """The columns that the paper's average is of: those before it."""
    names = paper.measures
    return {*names[: names.index("Average")]} if "Average" in names else set()
