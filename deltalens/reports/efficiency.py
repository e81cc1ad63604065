"""What an efficiency study shows: the cost of each method per step, beside the paper's Table 3."""

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
    """An efficiency study in numbers and sentences."""

    record: StudyRecord

    def relative(self) -> dict[str, pd.Series[float]]:
        """Compare each method's speed with plain fine-tuning's.

        Returns:
            Method -> samples per second over plain fine-tuning's in the same repeat, one value for
            each repeat; empty until plain fine-tuning is measured.
        """
        speed = self._wide("samples_per_second").dropna()
        if "sft" not in speed:
            return {}
        return {str(name): speed[name] / speed["sft"] for name in speed.columns}

    def tables(self) -> list[Table]:
        """Show medians over the repeats.

        Returns:
            A table with a row for each method; the relative speed has its 10th and 90th percentile.
        """
        step = self.record.facts["flops_of_a_step"]
        plain = _paper_speeds("sft")
        rows = []
        for name, ratio in self.relative().items():
            paper = _paper_speeds(name)
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
            "method overhead",
            "GFLOP per micro-batch",
            "peak MB",
            "paper (7B / 13B)",
        )
        return [Table("", columns, tuple(rows))]

    def sentences(self) -> Iterator[str]:
        """Say how much slower each method makes a step.

        Returns:
            A sentence for each method but plain fine-tuning.
        """
        for name, ratio in self.relative().items():
            if name != "sft":
                more = 100 * (1 / float(ratio.median()) - 1)
                than = "slower" if more >= 0 else "faster"
                yield f"{name}: {abs(more):.1f} % {than} per step than sft (median of repeats)"

    def as_json(self) -> dict[str, Any]:
        """Give the numbers to a script.

        Returns:
            JSON values; numbers may be NaN.
        """
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
        # pivot_table leaves out a method without a finite value.
        return float(wide[method].median()) if method in wide else math.nan


def _paper_speeds(method: str) -> list[float]:
    """Samples per second in Table 3, with Mistral-7B and LLaMA2-13B; empty for other methods."""
    cells = paper_table("gmt_tab3").cells
    rows = cells[cells["method"] == row_in_table3(method)]
    return [as_number(cell) for cell in rows["Training Speed (samples/s)"]]


def summarize_efficiency(record: StudyRecord) -> EfficiencySummary:
    """Summarize an efficiency study, finished or not.

    Args:
        record: of the study.

    Returns:
        Its summary.

    Raises:
        RecordError: it is another kind of study, or no repeat of it is finished.
    """
    if record.kind != "efficiency" or record.cells.empty:
        raise RecordError(f"{record.path}: no efficiency study with finished cells")
    return EfficiencySummary(record)
