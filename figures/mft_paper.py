"""Which rows and columns of MFT's tables belong to a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deltalens.catalog.methods import METHODS
from deltalens.figures.mft_studies import DOMAINS, MftStudy, label
from deltalens.figures.mft_tables import Column
from deltalens.figures.paper_points import benchmark_of, by_benchmark
from deltalens.io.papers import PaperTable

__all__ = ["across_names", "columns_beside", "global_names", "row_names"]

_GLOBAL = "FFT + Global MFT (Ours)"


def row_names(methods: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Find the rows of Tables 1 and 2 for methods.

    Args:
        methods: as the records name them.

    Returns:
        What a study's table calls them -> the paper's row.
    """
    rows = {method: METHODS[method].in_mft for method in methods if method in METHODS}
    return {(label(method),): row for method, row in rows.items() if row}


def global_names(rows: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Find the rows of Table 3.

    Args:
        rows: what a study's table calls its global MFT.

    Returns:
        What it calls a method -> the paper's row.
    """
    others = {(label(name),): one.in_mft_global for name, one in METHODS.items()}
    return {**{key: row for key, row in others.items() if row}, **{(row,): _GLOBAL for row in rows}}


def across_names(studies: Sequence[MftStudy], paper: PaperTable) -> dict[tuple[str, ...], str]:
    """Find the rows of Tables 5 and 6, each of a method and a domain.

    Args:
        studies: one for each domain; its own data say which of the paper's it is.
        paper: the table.

    Returns:
        What a study's table calls them -> the paper's row.
    """
    printed = {str(name) for name in paper.cells["method"]}
    found: dict[tuple[str, ...], str] = {("–", label("base")): METHODS["base"].in_mft_across}
    for study in studies:
        own = {benchmark_of(data) for data in study.own_sets}
        for domain, benchmarks in DOMAINS.items():
            if not own & {*benchmarks.names}:
                continue
            # One row of Table 6 spells its domain out.
            spelt = (domain, "Instruction") if domain == "IF" else (domain,)
            for method in study.methods:
                row = METHODS[method].in_mft_across if method in METHODS else ""
                names = [f"{row} [{one}]" for one in spelt if f"{row} [{one}]" in printed]
                if names:
                    found[study.domain, label(method)] = names[0]
    return found


def columns_beside(columns: Sequence[Column], paper: PaperTable, labels: int = 1) -> dict[int, str]:
    """Find the paper's columns for those of a study, by the names of the data.

    Args:
        columns: of the study's block; those in per cent can be compared.
        paper: the paper's table.
        labels: how many columns name the block's rows.

    Returns:
        Index of a column of the block -> the paper's column.
    """
    of_benchmark = by_benchmark(paper.measures)
    found: dict[int, str] = {}
    for index, column in enumerate(columns):
        name = of_benchmark.get(benchmark_of(column.data), "")
        if name and column.measure.scale == 100 and name not in found.values():
            found[labels + index] = name
    return found
