"""The suite: what a study measures of a model (data, metrics, options), and its identity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from deltalens.catalog.metrics import Better, check_better
from deltalens.errors import DeltaLensError
from deltalens.io.records import Measurement
from deltalens.scoring.code import FunctionIdentity
from deltalens.scoring.custom_metrics import (
    InstalledMetric,
    Metric,
    identify_metric,
)
from deltalens.scoring.forms import FileScoring, metrics_of, scoring_of
from deltalens.scoring.rows import DataFile, read_files
from deltalens.scoring.tasks.scoring import StandardTasks
from deltalens.scoring.tasks.selection import TaskSelection
from deltalens.scoring.texts import (
    FidelityTexts,
)

__all__ = ["FIDELITY", "Metrics", "Suite", "read_suite"]

Metrics = dict[str, Measurement]
FIDELITY = {"kl", "top1_agreement"}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is measured of a model. It can be sent to another process.

    Raises:
        DeltaLensError: two files have the same name.
    """

    files: tuple[DataFile, ...] = ()
    metrics: tuple[str, ...] = ()
    """Names of the metrics to keep; (): all."""
    batch_tokens: int = 4096
    """Tokens per batch, padding included."""
    answer_pattern: re.Pattern[str] | None = None
    """Finds the answer in a generated text; None: the whole completion is the answer."""
    fidelity: FidelityTexts = field(default_factory=FidelityTexts)
    """The texts for fidelity, if that is measured."""
    metric: Metric | None = None
    """A caller's metric, which replaces all others."""
    metric_identity: FunctionIdentity = field(default=FunctionIdentity(None))
    """Identity of the caller's metric."""
    installed: tuple[InstalledMetric, ...] = ()
    """Metrics of installed packages that were requested by name."""
    beta: float | None = None
    """DPO's beta, if preferences are measured by their rewards; None: their chosen answers are
    measured like other rows."""
    tasks: StandardTasks | None = None
    """Standard tasks, measured through the lm-evaluation-harness."""
    stated_better: Mapping[str, Better] = field(default_factory=dict)
    """Which values of metrics are better, according to the caller."""
    by_data: bool = False
    """Measure each data set by itself. Fidelity is then measured only if it is named, and the data
    even if only fidelity is named."""

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        repeated = [str(file.path) for file in self.files if names.count(file.name) > 1]
        if repeated:
            raise DeltaLensError(
                f"data files with the same name: {', '.join(repeated)}; rename one of them"
            )

    @property
    def wants_fidelity(self) -> bool:
        """Whether fidelity is measured: if it is named, or if there is nothing else to measure."""
        named = bool(FIDELITY & {*self.metrics})
        if self.by_data:
            return named and self.metric is None
        others = self.files or self.metric is not None or self.installed or self.tasks
        return named or not others

    @property
    def better(self) -> dict[str, Better]:
        """Which values are better, for metrics that are not deltalens's own, as far as stated."""
        installed = {
            metric.name: metric.better for metric in self.installed if metric.better is not None
        }
        tasks = self.tasks.built.better() if self.tasks is not None else {}
        return {**tasks, **installed, **self.stated_better}

    @property
    def task_tokens(self) -> int:
        """Tokens of the standard tasks, for a plan."""
        return self.tasks.built.tokens if self.tasks is not None else 0

    @property
    def paths(self) -> list[Path]:
        """The files that are read again in every process that measures: those of the tasks."""
        return self.tasks.paths if self.tasks is not None else []

    def identity(self) -> dict[str, Any]:
        """Collect everything that decides the numbers.

        Returns:
            JSON values, for a study's specification.
        """
        identity: dict[str, Any] = {
            "data": [file.identity for file in self.files],
            "metrics": list(self.metrics),
            "metric": self.metric_identity.spec,
            "answer_pattern": self.answer_pattern.pattern if self.answer_pattern else None,
            "fidelity": self.fidelity.identity if self.wants_fidelity else None,
            "batch_tokens": self.batch_tokens,
        }
        if self.installed:
            identity["installed"] = {
                metric.name: f"{metric.distribution} {metric.version}" for metric in self.installed
            }
        if self.tasks is not None:
            identity["tasks"] = self.tasks.identity()
        return identity

    def scoring(self, file: DataFile, reference: nn.Module, tokenizer: Any) -> FileScoring:
        """Tokenize a file, to evaluate models on it, with the suite's options (`scoring_of`).

        Args:
            file: the rows.
            reference: the model that the study is about; under DPO, rewards are relative to it.
            tokenizer: its tokenizer; None if it has none.

        Returns:
            What measures the rows, by their form.

        Raises:
            DeltaLensError: the rows do not fit the model.
        """
        return scoring_of(
            file,
            reference,
            tokenizer,
            batch_tokens=self.batch_tokens,
            answer_pattern=self.answer_pattern,
            beta=self.beta,
        )

    def check_names(self) -> None:
        """Refuse unknown metrics.

        Raises:
            DeltaLensError: names the first unknown metric, and those that there are.
        """
        if self.metric is not None:
            return
        ours = set[str]().union(*map(metrics_of, self.files))
        if len(self.files) > 1 and not self.by_data:
            ours |= {f"{file.name}/{name}" for file in self.files for name in ours}
        measured = ours | FIDELITY | {metric.name for metric in self.installed}
        if self.tasks is not None:
            measured |= self.tasks.built.metrics()
        unknown = [name for name in self.metrics if name not in measured]
        if unknown:
            available = ", ".join(sorted(measured | InstalledMetric.names()))
            raise DeltaLensError(
                f"metric {unknown[0]!r} cannot be measured here; choose from {available}"
            )


def read_suite(
    *,
    data: Sequence[str | Path],
    metrics: Sequence[str],
    metric: Metric | None,
    better: Mapping[str, str] | None,
    version: str | int | None,
    answer_pattern: str | None,
    limit: int | None,
    fields: Mapping[str, str] | None,
    fidelity: FidelityTexts,
    batch_tokens: int,
    by_data: bool = False,
    tasks: TaskSelection | None = None,
) -> Suite:
    """Read and check what a study is to measure.

    Args:
        data: files of rows.
        metrics: names of the metrics to keep; (): all.
        metric: a caller's metric, which replaces all others.
        better: which values of the caller's metrics are better: "higher" or "lower", by name.
        version: the caller's version of `metric`; None: its code is digested.
        answer_pattern: a regular expression that finds the answer in a generated text.
        limit: the number of rows to read from each file; None: all.
        fields: the files' names for fields (see `read_rows`).
        fidelity: the texts for fidelity, if that is measured.
        batch_tokens: tokens per batch, padding included.
        by_data: measure each data set by itself (see `Suite.by_data`).
        tasks: standard tasks to measure.

    Returns:
        The suite.

    Raises:
        DeltaLensError: an argument or a file cannot be used.
    """
    if batch_tokens < 1:
        raise DeltaLensError(f"batch_tokens={batch_tokens}: must be at least 1")
    stated_better = check_better(better, custom=metric is not None)
    fidelity.check()
    try:
        pattern = re.compile(answer_pattern) if answer_pattern is not None else None
    except re.error as error:
        raise DeltaLensError(
            f"answer_pattern={answer_pattern!r}: not a regular expression: {error}"
        ) from error
    if metric is not None and tasks is not None:
        raise DeltaLensError("a `metric` of your own replaces all others: leave `tasks` out")
    installed = [] if metric is not None else [InstalledMetric.find(name) for name in metrics]
    return Suite(
        files=tuple(read_files(data, limit, fields)),
        metrics=tuple(metrics),
        batch_tokens=batch_tokens,
        answer_pattern=pattern,
        fidelity=fidelity,
        metric=metric,
        metric_identity=identify_metric(metric, version),
        installed=tuple(metric for metric in installed if metric is not None),
        stated_better=stated_better,
        by_data=by_data,
        tasks=StandardTasks(tasks) if tasks is not None else None,
    )
