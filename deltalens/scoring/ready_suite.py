"""A suite that is prepared for a model: tokenized once, measured in every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from torch import nn

from deltalens.io.records import Measurement
from deltalens.scoring.custom_metrics import measure_with
from deltalens.scoring.fidelity import Fidelity
from deltalens.scoring.file_scoring import can_generate
from deltalens.scoring.finite import check_measured
from deltalens.scoring.forms import FileScoring
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.suite import FIDELITY, Metrics, Suite
from deltalens.scoring.tasks.scoring import TaskScoring
from deltalens.scoring.texts import Progress, Report, StoredTexts, fidelity_on

__all__ = ["ReadySuite", "evaluating"]

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


def _nobody(done: int, total: int) -> None:
    """A `Report` to nobody."""


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
        tasks: the standard tasks, if there are any.

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
        self.tasks: TaskScoring | None = None
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
        if self.suite.tasks is not None:
            if watch is not None:
                watch.stage("building the requests of standard tasks", None)
            self.tasks = TaskScoring(self.suite.tasks, loaded)
            self.notes += self.tasks.notes
        if self.suite.wants_fidelity and texts is not None and watch is not None:
            if not can_generate(loaded.model):
                self.notes.append(
                    f"{type(loaded.model).__name__} cannot generate: fidelity is measured on "
                    "random tokens of its vocabulary"
                )
            self._fidelity = fidelity_on(texts, self.suite.fidelity, loaded, watch, label)

    def measure(self, model: nn.Module, report: Report = _nobody) -> Metrics:
        """Measure all metrics of a model.

        Args:
            model: the model.
            report: told of the requests of standard tasks that are done.

        Returns:
            Measurements by name; if there are several files, by `FILE/metric`.

        Raises:
            DeltaLensError: the model fails on a row, or a custom metric returns no numbers.
        """
        return {name.full: measured for name, measured in self._measurements(model, report)}

    def measure_by_data(self, model: nn.Module, report: Report = _nobody) -> dict[str, Metrics]:
        """Measure all metrics of a model, grouped by data.

        Args:
            model: the model.
            report: see `measure`.

        Returns:
            Data -> metric -> measurement. A custom metric's `train/loss` is the loss on `train`.

        Raises:
            DeltaLensError: see `measure`.
        """
        by_data: dict[str, Metrics] = {}
        for name, measured in self._measurements(model, report):
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

    def _measurements(self, model: nn.Module, report: Report) -> _Measurements:
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
        yield from self._of_tasks(model, report)
        for metric in self.suite.installed:
            for full, value in metric.measure(model, self._tokenizer).items():
                yield _custom_name(full), Measurement(value)

    def _of_tasks(self, model: nn.Module, report: Report) -> _Measurements:
        metrics = self.tasks.measure(model, report) if self.tasks is not None else {}
        for full, measured in metrics.items():
            name = _custom_name(full)
            if self._is_kept(name.metric, full, {}):
                yield name, measured

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
