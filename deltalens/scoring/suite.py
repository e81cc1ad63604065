"""The suite: what a study measures of a model (data, metrics, options), its identity, and its
preparation, once for all cells of a study."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from deltalens.catalog.metrics import Better, check_better
from deltalens.errors import DeltaLensError
from deltalens.io.records import Measurement
from deltalens.scoring.code import FunctionIdentity
from deltalens.scoring.custom_metrics import (
    InstalledMetric,
    Metric,
    identify_metric,
    measure_with,
)
from deltalens.scoring.fidelity import Fidelity
from deltalens.scoring.file_scoring import can_generate
from deltalens.scoring.finite import check_measured
from deltalens.scoring.forms import FileScoring, metrics_of, scoring_of
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.rows import DataFile, read_files
from deltalens.scoring.texts import FidelityTexts, Progress, StoredTexts, fidelity_on

__all__ = ["Metrics", "ReadySuite", "Suite", "evaluating", "read_suite"]

Metrics = dict[str, Measurement]
FIDELITY = {"kl", "top1_agreement"}
NO_DATA = "-"
"""The data of a custom metric whose name does not include any."""
TEXTS = "texts"
"""The data of fidelity."""


class _Name(NamedTuple):
    """The name of a measurement."""

    full: str
    """`FILE/metric` if there are several files."""
    data: str
    """Name of the data that was measured."""
    metric: str
    """Name of the metric, without the data."""


_Measurements = Iterator[tuple[_Name, Measurement]]


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
        return named or not (self.files or self.metric is not None or self.installed)

    @property
    def better(self) -> dict[str, Better]:
        """Which values are better, for metrics that are not deltalens's own, as far as stated."""
        installed = {
            metric.name: metric.better for metric in self.installed if metric.better is not None
        }
        return {**installed, **self.stated_better}

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
    )


class ReadySuite:
    """A suite that is prepared for a model, so that nothing is tokenized again for further cells.

    Args:
        suite: what is measured.
        loaded: the model that the study is about. The texts for fidelity are sampled from it, and
            preferences are measured relative to it.
        where: the model's folder, for messages; a model that computes NaN or infinite logits is
            refused. None: this is not checked.
        texts: where the texts for fidelity are stored; None: fidelity is not measured.
        watch: receives the progress; None: fidelity is not measured.
        label: how the model is called in messages.

    Attributes:
        suite: what is measured.
        notes: what a reader of the records should know.
        scorings: the tokenized files.

    Raises:
        DeltaLensError: the rows do not fit the model, or it computes NaN or infinite logits.
    """

    def __init__(
        self,
        suite: Suite,
        loaded: LoadedModel,
        where: str | Path | None = None,
        texts: StoredTexts | None = None,
        watch: Progress | None = None,
        label: str = "the fine-tune",
    ) -> None:
        self.suite, self._tokenizer, self._where = suite, loaded.tokenizer, where
        self.notes: list[str] = []
        self.scorings: list[FileScoring] = []
        self._fidelity: Fidelity | None = None
        if suite.metric is None:
            self._prepare(loaded, texts, watch, label)
        if loaded.fresh:
            names = ", ".join(loaded.fresh)
            self.notes.append(f"not in the checkpoint, initialized at random: {names}")

    def _prepare(
        self,
        loaded: LoadedModel,
        texts: StoredTexts | None,
        watch: Progress | None,
        label: str,
    ) -> None:
        for file in self.suite.files:
            if watch is not None:
                watch.stage(f"tokenizing {file.path.name}", None)
            scoring = self.suite.scoring(file, loaded.model, loaded.tokenizer)
            if self._where is not None:
                scoring.check(loaded.model, self._where)
            if scoring.left_out:
                self.notes.append(
                    f"{file.path.name}: {scoring.left_out} rows left out: they are too long, or "
                    "have no token to predict"
                )
            self.scorings.append(scoring)
        if self.suite.wants_fidelity and texts is not None and watch is not None:
            if not can_generate(loaded.model):
                self.notes.append(
                    f"{type(loaded.model).__name__} cannot generate: fidelity is measured on "
                    "random tokens of its vocabulary"
                )
            self._fidelity = fidelity_on(texts, self.suite.fidelity, loaded, watch, label)

    def measure(self, model: nn.Module) -> Metrics:
        """Measure all metrics of a model.

        Args:
            model: the model.

        Returns:
            Measurements by name; if there are several files, by `FILE/metric`.

        Raises:
            DeltaLensError: the model fails on a row, or a custom metric returns no numbers.
        """
        return {name.full: measured for name, measured in self._measurements(model)}

    def measure_by_data(self, model: nn.Module) -> dict[str, Metrics]:
        """Measure all metrics of a model, grouped by data.

        Args:
            model: the model.

        Returns:
            Data -> metric -> measurement. A custom metric's `train/loss` is the loss on `train`.

        Raises:
            DeltaLensError: see `measure`.
        """
        by_data: dict[str, Metrics] = {}
        for name, measured in self._measurements(model):
            by_data.setdefault(name.data, {})[name.metric] = measured
        return by_data

    def check_first(self, metrics: Mapping[str, Measurement], model: nn.Module) -> None:
        """Refuse the model that a study is about if one of deltalens's metrics is NaN.

        Args:
            metrics: what `measure` returned for it.
            model: the model.

        Raises:
            DeltaLensError: names the dtype, and says what to do.
        """
        if self.suite.metric is not None or self._where is None:
            return
        installed = {metric.name for metric in self.suite.installed}
        ours = {name: m for name, m in metrics.items() if not installed & {*name.split("/")}}
        check_measured(ours, model, self._where)

    def _measurements(self, model: nn.Module) -> _Measurements:
        if self.suite.metric is not None:
            for full, value in measure_with(self.suite.metric, model).items():
                yield _custom_name(full), Measurement(value)
            return
        parts: list[tuple[str, str, Callable[[nn.Module], Metrics]]] = [
            (scoring.name, f"{scoring.name}/" if len(self.scorings) > 1 else "", scoring.measure)
            for scoring in self.scorings
        ]
        if self._fidelity is not None:
            parts.append((TEXTS, "", self._fidelity.measure))
        for data, prefix, measure in parts:
            metrics = measure(model)
            for name, measured in metrics.items():
                if self._is_kept(name, prefix + name, metrics):
                    yield _Name(prefix + name, data, name), measured
        for metric in self.suite.installed:
            for full, value in metric.measure(model, self._tokenizer).items():
                yield _custom_name(full), Measurement(value)

    def _is_kept(self, name: str, full_name: str, measured_with: Metrics) -> bool:
        wanted = {*self.suite.metrics}
        if self.suite.by_data and wanted <= FIDELITY and not wanted & measured_with.keys():
            return True
        return not wanted or name in wanted or full_name in wanted


def _custom_name(full: str) -> _Name:
    data, _, metric = full.rpartition("/")
    return _Name(full, data or NO_DATA, metric)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in training into evaluation mode for the duration of the block.

    Args:
        model: the model.

    Yields:
        None.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
