"""What a mask-ratio sweep found, in a few sentences and a table per metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltalens.errors import RecordError
from deltalens.io.records import StudyRecord
from deltalens.io.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SweepSummary", "summarise_sweep"]

_LOW_IS_GOOD = {"loss", "perplexity", "training_loss"}
_NOT_SHOWN = {"perplexity", "training_loss"}
"""In the table file and in JSON; beside the loss they say nothing more."""
_NEAR = 0.05


@dataclass(frozen=True)
class SweepSummary:
    """The answer of a mask-ratio sweep."""

    record: StudyRecord

    def sentences(self) -> Iterator[str]:
        """The summary as a person reads it: for every data set, its first metric."""
        for metric in self._leading():
            frame = self._of(metric)
            sft = frame[frame["method"] == "sft"]["value"]
            low = metric.rpartition("/")[2] in _LOW_IS_GOOD
            yield f"{metric}: sft {_spread(sft)}"
            for method, part in frame[frame["method"] != "sft"].groupby("method", sort=False):
                if method == "hft":
                    yield f"hft: {_spread(part['value'])}"
                    continue
                means = part.groupby("mask_ratio")["value"].mean()
                ratios = [float(ratio) for ratio in means.index]
                best = means.idxmin() if low else means.idxmax()
                far = [
                    ratio
                    for ratio, value in zip(ratios, means, strict=True)
                    if (value - sft.mean() if low else sft.mean() - value) > _NEAR * abs(sft.mean())
                ]
                held = [ratio for ratio in ratios if not far or ratio < far[0]]
                flat = (
                    f"within 5 % of sft up to {max(held):g}"
                    if held
                    else "outside 5 % of sft from the first ratio on"
                )
                at_best = part[part["mask_ratio"] == best]["value"]
                yield f"{method}: best {_spread(at_best)} at {best:g}; {flat}"

    def tables(self) -> list[Table]:
        """One table per metric: ratios down, methods across, mean ± deviation over seeds."""
        made = []
        for metric in dict.fromkeys(self.record.cells["metric"]):
            if metric.rpartition("/")[2] in _NOT_SHOWN:
                continue
            frame = self._of(metric)
            methods = [name for name in dict.fromkeys(frame["method"]) if name != "sft"]
            rows = tuple(
                (
                    f"{ratio:g}",
                    *(_spread(part[part["method"] == method]["value"]) for method in methods),
                )
                for ratio, part in frame.groupby("mask_ratio")
            )
            made.append(Table(str(metric), ("mask ratio", *methods), rows))
        return made

    def as_json(self) -> dict[str, Any]:
        """The summary for scripts: metric -> method -> mask ratio -> mean over seeds."""
        found: dict[str, Any] = {}
        for (metric, method, ratio), part in self.record.cells.groupby(
            ["metric", "method", "mask_ratio"], sort=False
        ):
            of_metric = found.setdefault(str(metric), {})
            of_metric.setdefault(str(method), {})[f"{ratio:g}"] = float(part["value"].mean())
        return {"study": str(self.record.path), "metrics": found}

    def _of(self, metric: str) -> pd.DataFrame:
        frame = self.record.cells
        return frame[frame["metric"] == metric]

    def _leading(self) -> list[str]:
        first: dict[str, str] = {}
        for metric in dict.fromkeys(self.record.cells["metric"]):
            if metric != "training_loss":
                first.setdefault(metric.rpartition("/")[0], metric)
        return list(first.values())


def _spread(values: pd.Series[float]) -> str:
    if values.empty:
        return "-"
    text = f"{values.mean():.4f}"
    return f"{text} ± {values.std():.4f}" if len(values) > 1 else text


def summarise_sweep(record: StudyRecord) -> SweepSummary:
    """Summarise a mask-ratio sweep, also one that is not finished.

    Raises:
        RecordError: it is another kind of study, or has no finished cell.
    """
    if record.kind != "mask-ratio-sweep" or record.cells.empty:
        raise RecordError(f"{record.path}: no mask-ratio sweep with finished cells")
    return SweepSummary(record)
