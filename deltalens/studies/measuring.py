"""What the studies of finished models share: what is measured, on which tensors, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deltalens.scoring.custom_metrics import Metric
from deltalens.scoring.placement import DeviceMap, check_device_map
from deltalens.scoring.suite import Suite, read_suite
from deltalens.scoring.tasks.selection import TaskSelection
from deltalens.scoring.texts import FidelityTexts
from deltalens.studies.engine import StudyWatch
from deltalens.studies.executors import Execution

__all__ = ["Measuring"]


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How a study measures models that exist already (drop study, sweep over layers, landscape)."""

    data: Sequence[str | Path] = ()
    """Files of rows (`read_rows`). Without data, fidelity to the fine-tune is measured, except in a
    landscape, which requires data."""
    limit: int | None = None
    """Use this many rows of each file and documents of each task, the first ones; None: all."""
    tasks: Sequence[str] = ()
    """Standard tasks (`TaskChoice.parse`), measured through the lm-evaluation-harness."""
    include_path: str | Path | None = None
    """Folder with further tasks."""
    num_fewshot: int | None = None
    """Examples in each prompt of a task; None: as the task has it."""
    batch_size: int | str | None = None
    """Requests of tasks per batch, or `auto`; None: 1."""
    apply_chat_template: bool = False
    """Write the prompts of tasks as chats, by the model's chat template."""
    confirm_run_unsafe_code: bool = False
    """Run code that the model writes, for tasks that measure it by that."""
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
    device_map: DeviceMap | None = None
    """How accelerate spreads a model over several devices, the CPU and the disk: `auto`,
    `balanced`, ..., or module -> device; instead of `device`. The numbers do not depend on it."""
    dtype: str = "auto"
    """How models are loaded; `auto`: in the checkpoint's dtype. In a landscape, `auto` is fp32
    (fp64 for an fp64 checkpoint), as most points between two bf16 models are no bf16 numbers."""
    trust_remote_code: bool = False
    """Run model code that the checkpoint contains."""
    execution: Execution = field(default_factory=Execution)
    """By what the cells are measured. The numbers do not depend on it."""
    fresh: bool = False
    """Discard any other study in the folder."""
    watch: StudyWatch = field(default_factory=StudyWatch)
    """Told of stages, progress and finished cells."""

    def __post_init__(self) -> None:
        check_device_map(self.device_map, self.device, self.execution.jobs, self.execution.executor)

    def suite(self, *, by_data: bool = False) -> Suite:
        """Read the data, build the requests of tasks, and check what is to be measured.

        Args:
            by_data: measure each file by itself, as a landscape does.

        Returns:
            What is measured in each cell.

        Raises:
            DeltaLensError: bad data, or a metric or a task that does not exist or cannot be used.
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
            tasks=TaskSelection.of(
                self.tasks,
                include_path=self.include_path,
                limit=self.limit,
                num_fewshot=self.num_fewshot,
                batch_size=self.batch_size,
                apply_chat_template=self.apply_chat_template,
                confirm_run_unsafe_code=self.confirm_run_unsafe_code,
            ),
        )
