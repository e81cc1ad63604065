"""All that is measured of a model: which data, which metrics, how; its identity; and made ready,
once, for as many models as there are cells."""

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
from deltalens.scoring.code import KnownFunction
from deltalens.scoring.fidelity import Fidelity
from deltalens.scoring.file_scoring import Scoring, can_generate
from deltalens.scoring.finite import check_measured
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.own_metrics import InstalledMetric, Metric, known_metric, measured_by
from deltalens.scoring.preferences import Preferences
from deltalens.scoring.rows import DataFile, read_files
from deltalens.scoring.texts import FidelityTexts, KeptTexts, Progress, fidelity_on

__all__ = ["Metrics", "ReadySuite", "Suite", "evaluating", "read_suite"]

Metrics = dict[str, Measurement]
FIDELITY = {"kl", "top1_agreement"}
OWN = "-"
"""What a measurement of the caller's is of, where its name has no data in it."""
TEXTS = "texts"
"""What fidelity is of."""


class _Name(NamedTuple):
    """Of a measurement."""

    whole: str
    """`FILE/metric` where there are several files."""
    data: str
    """What it is of."""
    short: str
    """Without that."""


_Found = Iterator[tuple[_Name, Measurement]]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What is measured of a model, checked; it can go to any process.

    Raises:
        DeltaLensError: two files of the same name.
    """

    files: tuple[DataFile, ...] = ()
    metrics: tuple[str, ...] = ()
    """Of all that is measured, only these are kept; none: all."""
    batch_tokens: int = 4096
    answer_pattern: re.Pattern[str] | None = None
    fidelity: FidelityTexts = field(default_factory=FidelityTexts)
    """The texts that it is measured on, where it is."""
    metric: Metric | None = None
    """The caller's own, instead of all others."""
    known: KnownFunction = field(default=KnownFunction(None))
    """What is known of that."""
    installed: tuple[InstalledMetric, ...] = ()
    """Metrics of installed packages, which were asked for by name."""
    beta: float | None = None
    """Of DPO: preferences are measured as such; None: by their chosen answers."""
    said: Mapping[str, Better] = field(default_factory=dict)
    """Which way metrics are better, as the caller says."""
    by_data: bool = False
    """A measurement is of one data set, not of all: without any there is nothing to fall back on,
    and where fidelity alone is named the data is measured beside it."""

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        twice = [str(file.path) for file in self.files if names.count(file.name) > 1]
        if twice:
            raise DeltaLensError(f"data files of the same name: {', '.join(twice)}; rename one")

    @property
    def wants_fidelity(self) -> bool:
        """Where it is named, and where there is nothing else."""
        named = bool(FIDELITY & {*self.metrics})
        if self.by_data:
            return named and self.metric is None
        return named or not (self.files or self.metric is not None or self.installed)

    @property
    def better(self) -> dict[str, Better]:
        """Which way metrics that are not our own are better, as far as somebody says so."""
        installed = {one.name: one.better for one in self.installed if one.better is not None}
        return {**installed, **self.said}

    def identity(self) -> dict[str, Any]:
        """What of it decides the numbers, as JSON values."""
        found: dict[str, Any] = {
            "data": [file.identity for file in self.files],
            "metrics": list(self.metrics),
            "metric": self.known.spec,
            "answer_pattern": self.answer_pattern.pattern if self.answer_pattern else None,
            "fidelity": self.fidelity.identity if self.wants_fidelity else None,
            "batch_tokens": self.batch_tokens,
        }
        if self.installed:
            found["installed"] = {
                one.name: f"{one.distribution} {one.version}" for one in self.installed
            }
        return found

    def scoring(self, file: DataFile, start: nn.Module, tokenizer: Any) -> Scoring | Preferences:
        """A file, tokenized, to be measured: under DPO preferences against the model that is given,
        and everything else by its targets.

        Raises:
            DeltaLensError: the rows do not fit the model.
        """
        if self.beta is not None and file.rows[0].rejected is not None:
            return Preferences(file, start, tokenizer, self.batch_tokens, self.beta)
        return Scoring(file, start, tokenizer, self.batch_tokens, self.answer_pattern)

    def check_names(self) -> None:
        """Refuse metrics that are not measured here.

        Raises:
            DeltaLensError: names the first, and those that there are.
        """
        if self.metric is not None:
            return
        ours = set[str]()
        if self.files:
            ours |= {"loss", "perplexity"}
            if any(file.rows[0].answered for file in self.files):
                ours |= {"exact_match"}
        if len(self.files) > 1 and not self.by_data:
            ours |= {f"{file.name}/{name}" for file in self.files for name in ours}
        known = ours | FIDELITY | {one.name for one in self.installed}
        unknown = [name for name in self.metrics if name not in known]
        if unknown:
            there = ", ".join(sorted(known | InstalledMetric.names()))
            raise DeltaLensError(f"metric {unknown[0]!r} is not measured here; there are {there}")


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
    """What a study is asked to measure, read and checked; its arguments are the study's.

    Raises:
        DeltaLensError: bad input.
    """
    if batch_tokens < 1:
        raise DeltaLensError(f"batch_tokens {batch_tokens}: at least 1")
    said = check_better(better, custom=metric is not None)
    fidelity.check()
    try:
        pattern = re.compile(answer_pattern) if answer_pattern is not None else None
    except re.error as error:
        raise DeltaLensError(
            f"answer pattern {answer_pattern!r}: no regular expression: {error}"
        ) from error
    found = [] if metric is not None else [InstalledMetric.found(name) for name in metrics]
    return Suite(
        files=tuple(read_files(data, limit, fields)),
        metrics=tuple(metrics),
        batch_tokens=batch_tokens,
        answer_pattern=pattern,
        fidelity=fidelity,
        metric=metric,
        known=known_metric(metric, version),
        installed=tuple(one for one in found if one is not None),
        said=said,
        by_data=by_data,
    )


class ReadySuite:
    """A suite made ready on a model: nothing is tokenized again.

    Args:
        suite: what is measured.
        loaded: what the study is about: texts are its own, and preferences are against it.
        where: its folder; a model there that computes no numbers is refused. None: not looked at.
        texts: where those of fidelity are kept.
        watch: told of stages.
        called: what the model is called there.

    Raises:
        DeltaLensError: the rows do not fit the model, or it computes no numbers.
    """

    def __init__(
        self,
        suite: Suite,
        loaded: LoadedModel,
        where: str | Path | None = None,
        texts: KeptTexts | None = None,
        watch: Progress | None = None,
        called: str = "the fine-tune",
    ) -> None:
        self.suite, self._tokenizer, self._where = suite, loaded.tokenizer, where
        self.notes: list[str] = []
        """What the records have to say of it."""
        self.scorings: list[Scoring | Preferences] = []
        """Of the files."""
        self._fidelity: Fidelity | None = None
        if suite.metric is None:
            self._make_ready(loaded, texts, watch, called)
        if loaded.fresh:
            names = ", ".join(loaded.fresh)
            self.notes.append(f"initialized at random, not in the checkpoint: {names}")

    def _make_ready(
        self,
        loaded: LoadedModel,
        texts: KeptTexts | None,
        watch: Progress | None,
        called: str,
    ) -> None:
        for file in self.suite.files:
            if watch is not None:
                watch.stage(f"tokenizing {file.path.name}", None)
            scoring = self.suite.scoring(file, loaded.model, loaded.tokenizer)
            if self._where is not None:
                scoring.check(loaded.model, self._where)
            if scoring.left_out:
                self.notes.append(
                    f"{file.path.name}: {scoring.left_out} rows left out: too long, or no token to "
                    "predict"
                )
            self.scorings.append(scoring)
        if self.suite.wants_fidelity and texts is not None and watch is not None:
            if not can_generate(loaded.model):
                self.notes.append(
                    f"{type(loaded.model).__name__} cannot generate: fidelity is measured on "
                    "random tokens of its vocabulary"
                )
            want = self.suite.fidelity
            self._fidelity = fidelity_on(texts, want, loaded, watch, called)

    def measure(self, model: nn.Module) -> Metrics:
        """Every metric of a model, by name: `FILE/metric` where there are several files."""
        return {name.whole: measured for name, measured in self._found(model)}

    def measure_by_data(self, model: nn.Module) -> dict[str, Metrics]:
        """Data -> metric -> measurement. What a metric of the caller's calls `train/loss` is the
        loss on `train`."""
        found: dict[str, Metrics] = {}
        for name, measured in self._found(model):
            found.setdefault(name.data, {})[name.short] = measured
        return found

    def check_first(self, found: Mapping[str, Measurement], model: nn.Module) -> None:
        """Refuse the model that a study is about, if a measurement of ours is NaN.

        Raises:
            DeltaLensError: with the dtype, and what to do.
        """
        if self.suite.metric is not None or self._where is None:
            return
        theirs = {one.name for one in self.suite.installed}
        ours = {name: m for name, m in found.items() if not theirs & {*name.split("/")}}
        check_measured(ours, model, self._where)

    def _found(self, model: nn.Module) -> _Found:
        if self.suite.metric is not None:
            for whole, value in measured_by(self.suite.metric, model).items():
                yield _own(whole), Measurement(value)
            return
        parts: list[tuple[str, str, Callable[[nn.Module], Metrics]]] = [
            (scoring.name, f"{scoring.name}/" if len(self.scorings) > 1 else "", scoring.measure)
            for scoring in self.scorings
        ]
        if self._fidelity is not None:
            parts.append((TEXTS, "", self._fidelity.measure))
        for data, prefix, measure in parts:
            found = measure(model)
            for short, measured in found.items():
                if self._is_kept(short, prefix + short, found):
                    yield _Name(prefix + short, data, short), measured
        for one in self.suite.installed:
            for whole, value in one.measure(model, self._tokenizer).items():
                yield _own(whole), Measurement(value)

    def _is_kept(self, short: str, whole: str, beside: Metrics) -> bool:
        wanted = {*self.suite.metrics}
        if self.suite.by_data and wanted <= FIDELITY and not wanted & beside.keys():
            return True
        return not wanted or short in wanted or whole in wanted


def _own(whole: str) -> _Name:
    data, _, short = whole.rpartition("/")
    return _Name(whole, data or OWN, short)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in training is in evaluation mode for the duration of the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
