"""What an efficiency study found, beside the paper's Table 3."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.catalog.methods import row_in_table3
from deltalens.errors import RecordError
from deltalens.io.papers import as_number, paper_table
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EfficiencySummary", "summarize_efficiency"]


@dataclass(frozen=True)
class EfficiencySummary:
    """The answer of an efficiency study."""

    record: StudyRecord

    def relative(self) -> dict[str, pd.Series[float]]:
        """Method -> samples per second relative to plain fine-tuning's in the same repeat; nothing
        while that has not been measured."""
        speed = self._wide("samples_per_second").dropna()
        if "sft" not in speed:
            return {}
        return {str(name): speed[name] / speed["sft"] for name in speed.columns}

    def tables(self) -> list[Table]:
        """A row for each method: medians; the relative speed with its 10th and 90th percentile."""
        step = self.record.facts["flops_of_a_step"]
        plain = _of_paper("sft")
        rows = []
        for name, ratio in self.relative().items():
            paper = _of_paper(name)
            low, high = ratio.quantile(0.1), ratio.quantile(0.9)
            rows.append(
                (
                    name,
                    f"{self._median('samples_per_second', name):.2f}",
                    f"{ratio.median():.3f} ({low:.3f}-{high:.3f})",
                    f"{100 * self._median('hook_share', name):.1f} %",
                    f"{step / 1e9:.2f}",
                    f"{self._median('peak_mb', name):,.0f}",
                    " / ".join(f"{a / b:.3f}" for a, b in zip(paper, plain, strict=True))
                    if paper
                    else "-",
                )
            )
        columns = (
            "method",
            "samples/s",
            "relative to sft",
            "in our hooks",
            "GFLOP a micro-batch",
            "peak MB",
            "paper (7B / 13B)",
        )
        return [Table("", columns, tuple(rows))]

    def sentences(self) -> Iterator[str]:
        """The summary as a person reads it."""
        for name, ratio in self.relative().items():
            if name != "sft":
                longer = 100 * (1 / ratio.median() - 1)
                yield f"{name}: a step takes {longer:+.1f} % of sft's time more (median of repeats)"

    def as_json(self) -> dict[str, Any]:
        """The summary for scripts."""
        return {
            "study": str(self.record.path),
            "flops_of_a_step": self.record.facts["flops_of_a_step"],
            "methods": {
                name: {
                    "samples_per_second": self._median("samples_per_second", name),
                    "relative": float(ratio.median()),
                    "relative_p10_p90": [float(ratio.quantile(q)) for q in (0.1, 0.9)],
                    "hook_share": self._median("hook_share", name),
                    "peak_mb": self._median("peak_mb", name),
                }
                for name, ratio in self.relative().items()
            },
        }

    def _wide(self, metric: str) -> pd.DataFrame:
        frame = self.record.cells[self.record.cells["metric"] == metric]
        return frame.pivot_table(index="repeat", columns="method", values="value", sort=False)

    def _median(self, metric: str, method: str) -> float:
        wide = self._wide(metric)
        # It leaves out a method of which nothing is finite.
        return float(wide[method].median()) if method in wide else math.nan


def _of_paper(method: str) -> list[float]:
    """Samples per second in Table 3, with Mistral-7B and LLaMA2-13B; none for other methods."""
    cells = paper_table("gmt_tab3").cells
    own = cells[cells["method"] == row_in_table3(method)]
    return [as_number(cell) for cell in own["Training Speed (samples/s)"]]


def summarize_efficiency(record: StudyRecord) -> EfficiencySummary:
    """Summarize an efficiency study, also one that is not finished.

    Raises:
        RecordError: it is another kind of study, or has no finished repeat.
    """
    if record.kind != "efficiency" or record.cells.empty:
        raise RecordError(f"{record.path}: no efficiency study with finished cells")
    return EfficiencySummary(record)
