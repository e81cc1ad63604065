"""The papers' own points where their text has them: hollow marks under a study's lines.

Their pictures are lost to us, but their tables have numbers that stand in the pictures as well: a
method at one mask ratio, or a model as it is. A panel shows them if its data is the paper's
benchmark, by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from deltalens.catalog.methods import METHODS, Look
from deltalens.catalog.metrics import scale_of
from deltalens.io.papers import as_number, paper_table

__all__ = [
    "PaperPoint",
    "benchmark_of",
    "by_benchmark",
    "draw_points",
    "gmt_domain",
    "gmt_drops",
    "gmt_ratios",
    "mft_points",
    "mft_tables",
    "plain_words",
    "points_note",
]

_NAMES: Mapping[str, tuple[str, ...]] = {
    "HumanEval+": ("humaneval plus", "humaneval+", "humanevalplus"),
    "MBPP+": ("mbpp plus", "mbpp+", "mbppplus"),
    "HumanEval": ("humaneval",),
    "MBPP": ("mbpp",),
    "GSM8K": ("gsm8k",),
    "MATH": ("hendrycks math", "minerva math", "math"),
    "MMLU": ("mmlu",),
    "BBH": ("bbh",),
    "TyDiQA": ("tydiqa",),
    "TruthfulQA": ("truthfulqa",),
    "IF-Eval": ("ifeval", "if eval"),
    "Alpaca-Eval": ("alpacaeval", "alpaca eval"),
}
"""Benchmark -> what files and tasks of it are called, in words; the longest first."""
_GENERAL = ("MMLU", "BBH", "TyDiQA", "TruthfulQA")
_GENERAL_DOMAIN = "General"
_DOMAINS = {
    "Math Reasoning": ("GSM8K", "MATH"),
    "Code Generation": ("HumanEval", "HumanEval+", "MBPP", "MBPP+"),
}
_IN_FIGURE_2 = {
    "Math Reasoning": "MISTRAL-7B",
    "Code Generation": "DEEPSEEK-CODER-BASE-6.7B",
    _GENERAL_DOMAIN: "LLAMA2-7B",
}
"""GMT's domains -> the model of its Figure 2."""


class PaperPoint(NamedTuple):
    """A number of a paper in a picture."""

    method: str
    """As our records name it."""
    x: float
    y: float
    """In per cent."""


def benchmark_of(data: str) -> str:
    """Find the benchmark of the papers that data is from.

    Args:
        data: the name of a file or task: `gsm8k_test`.

    Returns:
        The benchmark's name; empty of other data.

    Example:
        >>> benchmark_of("humaneval_plus"), benchmark_of("maths_test")
        ('HumanEval+', '')
    """
    words = f" {' '.join(re.findall(r'[a-z0-9+]+', data.lower()))} "
    return next(
        (name for name, held in _NAMES.items() if any(f" {one} " in words for one in held)), ""
    )


def by_benchmark(columns: Iterable[str]) -> dict[str, str]:
    """Sort a table's columns by benchmark.

    Args:
        columns: of a table of the papers.

    Returns:
        Benchmark -> column; without those that are of none, such as averages.
    """
    found = {benchmark_of(name.partition(" (")[0]): name for name in columns}
    return {benchmark: name for benchmark, name in found.items() if benchmark}


def gmt_domain(data: str, others: Iterable[str]) -> str:
    """Find the domain of GMT's Table 4 that data belongs to.

    Args:
        data: the name of a file or task.
        others: all data of its study, which tell the general domain from the others.

    Returns:
        The domain's name; empty of other data.
    """
    if {benchmark_of(one) for one in others} & {*_GENERAL}:
        return _GENERAL_DOMAIN
    return next((name for name, held in _DOMAINS.items() if benchmark_of(data) in held), "")


def gmt_ratios(data: str, others: Iterable[str]) -> list[PaperPoint]:
    """List the points of GMT's Figure 2 that its Tables 1, 2 and 4 have.

    Args:
        data: of the panel.
        others: all data of the study, which tell the general domain from the others.

    Returns:
        SFT at mask ratio 0, and GMT, Random Mask and One-off Drop at that of Table 4, for the
        figure's model of the domain; none of other data.
    """
    column, domain = benchmark_of(data), gmt_domain(data, others)
    model = _IN_FIGURE_2.get(domain, "")
    table, where = "gmt_tab2", {"model": model}
    if domain != _GENERAL_DOMAIN:
        table, where = "gmt_tab1", {"model": model, "domain": domain}
    ratio = _cell("gmt_tab4", "Mask Ratio (%)", model=model, domain=domain) / 100
    rows = {
        name: (facts.printed, ratio if facts.ratio else 0.0)
        for name, facts in METHODS.items()
        if facts.printed and (facts.ratio or name == "sft")
    }
    return _finite(
        PaperPoint(name, x, _cell(table, column, **where, method=row))
        for name, (row, x) in rows.items()
    )


def gmt_drops(data: str) -> list[PaperPoint]:
    """List the points of GMT's Figure 3 that its Table 1 has, of MISTRAL-7B fine-tuned on maths.

    Args:
        data: of the panel.

    Returns:
        The fine-tune at drop rate 0, One-off Drop at that of Table 4 and the base at 1; none of
        other data.
    """
    benchmark = benchmark_of(data)
    where = {"model": "MISTRAL-7B", "domain": "Math Reasoning"}
    rate = _cell("gmt_tab4", "Mask Ratio (%)", **where) / 100
    rows = (("SFT", 0.0), ("One-off Drop", rate), ("Pre-trained", 1.0))
    return _finite(
        PaperPoint("trivial", x, _cell("gmt_tab1", benchmark, **where, method=row))
        for row, x in rows
    )


def mft_points(data: str, at: Mapping[str, float], model: str = "") -> list[PaperPoint]:
    """List the points of MFT's pictures that its Tables 1 and 2 have, in the domain's own setting.

    Args:
        data: of the panel.
        at: method -> where it stands on the x-axis.
        model: the name of the study's model. LLaMA3.1-8B is beside Table 2, any other beside
            LLaMA2-7B's Table 1.

    Returns:
        The points of these methods; none of other data.
    """
    return _finite(
        PaperPoint(
            name,
            x,
            _cell(
                _mft_table(model)[0],
                benchmark_of(data),
                setting="" if name == "base" else "Specific Domain",
                method=METHODS[name].in_mft,
            ),
        )
        for name, x in at.items()
        if name in METHODS and METHODS[name].in_mft
    )


def mft_tables(models: Iterable[str]) -> str:
    """Name whose points `mft_points` lists.

    Args:
        models: the names of the studies' models.

    Returns:
        Words for a caption.
    """
    return " and ".join(sorted({_mft_table(model)[1] for model in models}))


def _mft_table(model: str) -> tuple[str, str]:
    if "llama31" in plain_words(model):
        return "mft_tab2", "LLaMA3.1-8B, Table 2"
    return "mft_tab1", "LLaMA2-7B, Table 1"


def plain_words(name: str) -> str:
    """Reduce a name to what can be compared: `OPT-350m` and `opt_350m` are one.

    Args:
        name: of a model, a data set or a metric.

    Returns:
        Its letters and digits, small.
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _cell(table: str, column: str, **labels: str) -> float:
    """A printed number; NaN where the table has no such row or column."""
    cells = paper_table(table).cells
    wanted = column.lower()
    named = [name for name in cells.columns if name.lower().partition(" (")[0] == wanted]
    named = [column] if column in cells.columns else named
    for name, value in labels.items():
        cells = cells[cells[name] == value]
    if not (column and named and len(cells) == 1):
        return math.nan
    return as_number(str(cells[named[0]].iloc[0]))


def _finite(points: Iterable[PaperPoint]) -> list[PaperPoint]:
    return [point for point in points if math.isfinite(point.y)]


def draw_points(
    axis: Any, metric: str, points: Iterable[PaperPoint], looks: Mapping[str, Look]
) -> bool:
    """Lay hollow marks under a panel's lines.

    Args:
        axis: matplotlib's axes.
        metric: of the panel; only one in per cent is the paper's.
        points: of the paper.
        looks: color and marker of each method.

    Returns:
        Whether there are any.
    """
    shown = [point for point in points if point.method in looks] if scale_of(metric) == 100 else []
    for method, x, y in shown:
        look = looks[method]
        axis.plot(
            x,
            y,
            marker=look.marker or "o",
            color=look.color,
            markerfacecolor="none",
            markersize=9,
            markeredgewidth=1.1,
            linestyle="",
            zorder=1.5,
            clip_on=False,
            label="_the paper",
        )
    return bool(shown)


def points_note(shown: bool, which: str) -> str:
    """Say in a caption what hollow marks are, or why there are none.

    Args:
        shown: whether there are any.
        which: whose they are: `MISTRAL-7B, Table 1`.

    Returns:
        A sentence.
    """
    if shown:
        return f"Large hollow marks: the paper's own numbers ({which})."
    return f"The paper's own numbers ({which}) are of other data, and not shown."
