"""What the studies of finished models share: what is measured, on which tensors, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltalens.scoring.custom_metrics import Metric
from deltalens.scoring.suite import Suite, read_suite
from deltalens.scoring.texts import FidelityTexts
from deltalens.studies.engine import StudyWatch

__all__ = ["Measuring"]


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How a study measures models that exist already (drop study, sweep over layers, landscape)."""

    data: Sequence[str | Path] = ()
    """Files of rows (`read_rows`). Without data, fidelity to the fine-tune is measured, except in a
    landscape, which requires data."""
    limit: int | None = None
    """Use this many rows of each file, the first ones; None: all."""
    fields: Mapping[str, str] | None = None
    """Names of fields in the data files, where they differ from ours: {"prompt": "question"}."""
    metrics: Sequence[str] = ()
    """Names of the metrics to keep; (): all."""
    metric: Metric | None = None
    """A custom measurement, which replaces the built-in ones."""
    better: Mapping[str, str] | None = None
    """Which values of the custom metrics are better: {"score": "higher"} or "lower". For any other
    custom metric, reports claim nothing that depends on its direction. A later call can add it."""
    version: str | int | None = None
    """Version of `metric` (and of a landscape's `loss`); change it whenever that measures something
    else. None: its code, and all that it refers to, is compared. If parts of that cannot be
    compared with those of a later call, the study cannot be resumed."""
    answer_pattern: str | None = None
    """Regular expression that finds the answer in a longer text; the model then generates."""
    fidelity: FidelityTexts = field(default_factory=FidelityTexts)
    """The texts that are sampled for fidelity."""
    batch_tokens: int = 4096
    """Tokens per batch, padding included."""
    include: str | None = None
    """Only tensors whose name matches this regular expression take part."""
    exclude: str | None = None
    """Tensors whose name matches this regular expression do not take part."""
    strict: bool = False
    """Refuse tensors that only some of the checkpoints contain; if False, notes name them."""
    device: str = "auto"
    """Where models are loaded; `auto`: CUDA, if available."""
    dtype: str = "auto"
    """How models are loaded; `auto`: in the checkpoint's dtype. In a landscape, `auto` is fp32
    (fp64 for an fp64 checkpoint), as most points between two bf16 models are no bf16 numbers."""
    trust_remote_code: bool = False
    """Run model code that the checkpoint contains."""
    jobs: int = 1
    """Cells that are measured at the same time, each in its own process with its own model, and on
    its own accelerator if there are several. The numbers do not depend on it."""
    executor: str | None = None
    """What measures the cells: `sequential`, `processes`, or the name of an installed package's
    executor. None: `processes` if there are several jobs."""
    fresh: bool = False
    """Discard any other study in the folder."""
    watch: StudyWatch = field(default_factory=StudyWatch)
    """Told of stages, progress and finished cells."""

    def suite(self, *, by_data: bool = False) -> Suite:
        """Read the data, and check what is to be measured.

        Args:
            by_data: measure each file by itself, as a landscape does.

        Returns:
            What is measured in each cell.

        Raises:
            DeltaLensError: bad data, or a metric that does not exist.
        """
        return read_suite(
            data=self.data,
            metrics=self.metrics,
            metric=self.metric,
            better=self.better,
            version=self.version,
            answer_pattern=self.answer_pattern,
            limit=self.limit,
            fields=self.fields,
            fidelity=self.fidelity,
            batch_tokens=self.batch_tokens,
            by_data=by_data,
        )
