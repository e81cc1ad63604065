"""A study's ranking of methods beside the one that SPEFT prints (arXiv 2412.13488)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from deltalens.errors import DeltaLensError
from deltalens.io.papers import as_number, paper_table
from deltalens.io.tables import ranks

__all__ = ["Ranked", "Ranking", "rank_beside_paper"]


class Ranked(NamedTuple):
    """A method that both have."""

    method: str
    """Its row in the paper's table."""
    value: float
    """The study's mean."""
    rank: float
    """Among the methods that both have; equal values share the mean of their places."""
    paper_value: float
    """The paper's average over its tasks."""
    paper_rank: float


@dataclass(frozen=True)
class Ranking:
    """The methods that a study and a table of the paper have in common."""

    table: str
    """Name of the paper's table."""
    model: str
    """Which of the table's models; empty if it has one alone."""
    rows: tuple[Ranked, ...]
    """The study's best first."""

    @property
    def agreement(self) -> float:
        """Spearman's correlation of the two rankings: 1 if they are the same, -1 if one is the
        other upside down; NaN of fewer than two methods, or where all are equal."""
        ours = [row.rank for row in self.rows]
        theirs = [row.paper_rank for row in self.rows]
        middle = (len(self.rows) + 1) / 2
        both = sum((o - middle) * (t - middle) for o, t in zip(ours, theirs, strict=True))
        spread = math.prod(sum((rank - middle) ** 2 for rank in one) for one in (ours, theirs))
        return both / math.sqrt(spread) if spread else math.nan

    def sentence(self) -> str:
        """Say how far the rankings agree.

        Returns:
            The paper's order, the study's, and their correlation.
        """
        of = f" ({self.model})" if self.model else ""
        if len(self.rows) < 2:
            return f"the paper's ranking{of} has fewer than two methods of this study"
        paper = sorted(self.rows, key=lambda row: row.paper_rank)
        return (
            f"the paper's ranking{of}: {_listed(row.method for row in paper)}; this study's: "
            f"{_listed(row.method for row in self.rows)}; Spearman's correlation "
            f"{self.agreement:.2f}"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def rank_beside_paper(
    means: Mapping[str, float],
    table: str = "speft_tab1",
    model: str = "",
    *,
    lower_is_better: bool = False,
) -> Ranking:
    """Rank a study's methods beside the paper's.

    Args:
        means: the paper's name of a method (`deltalens.catalog.variants.printed_row`) -> the
            study's mean. Methods that the table lacks, and means that are not finite, are left out.
        table: the paper's table, one that has the column `Avg.`.
        model: one of its models; by default the first, if it has any.
        lower_is_better: of the study's means.

    Returns:
        The ranking of the methods that both have.

    Raises:
        DeltaLensError: there is no such table, it has no averages, or no such model.
    """
    cells = paper_table(table).cells
    if not {"Avg.", "method"} <= {*cells.columns}:
        raise DeltaLensError(f"{table} prints no averages of methods, so it ranks none")
    if "model" in cells:
        models = [*dict.fromkeys(map(str, cells["model"]))]
        model = model or models[0]
        if model not in models:
            raise DeltaLensError(f"{table} has no model {model!r}; it has {', '.join(models)}")
        cells = cells[cells["model"] == model]
    elif model:
        raise DeltaLensError(f"{table} has no models to choose from")
    printed = dict(zip(cells["method"], map(as_number, cells["Avg."]), strict=True))
    common = [
        name
        for name, value in means.items()
        if math.isfinite(value) and math.isfinite(printed.get(name, math.nan))
    ]
    ours = ranks([means[name] for name in common], lower_is_better)
    theirs = ranks([printed[name] for name in common])
    rows = (
        Ranked(name, means[name], rank, printed[name], paper_rank)
        for name, rank, paper_rank in zip(common, ours, theirs, strict=True)
    )
    return Ranking(table, model, tuple(sorted(rows, key=lambda row: row.rank)))
