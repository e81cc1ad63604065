"""The drop study: how much of a fine-tune can be put back, and which part (GMT, Figure 3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deltalens.errors import DeltaLensError
from deltalens.evaluate.fidelity import Fidelity, sample_texts
from deltalens.evaluate.loading import (
    LoadedModel,
    check_fits,
    load_model,
    pick_device,
    pick_dtype,
)
from deltalens.evaluate.rows import DataFile, read_rows
from deltalens.evaluate.scoring import Scoring, can_generate
from deltalens.io.files import write_whole
from deltalens.io.pairing import Pairing, Scope, check_scope, pair
from deltalens.io.records import (
    Measurement,
    Setting,
    StudyFolder,
    StudyRecord,
    check_study_folder,
    load_study,
)
from deltalens.numerics.order import EVERYTHING
from deltalens.numerics.rates import Rate, exact_rates, show_rate
from deltalens.numerics.selection import STRATEGIES, Selection
from deltalens.numerics.workers import workers
from deltalens.studies.deltas import DeltaStream
from deltalens.studies.live import LiveModel
from deltalens.studies.selecting import DropSetting, check_strategy, no_delta, select_unit
from deltalens.studies.study import Metrics, StudyWatch, run_cells

__all__ = ["COLUMNS", "FidelityTexts", "Metric", "drop_study"]

COLUMNS = ("strategy", "scope", "rate", "seed")
TEXTS = "texts.json"
_FIDELITY = {"kl", "top1_agreement"}

Metric = Callable[[nn.Module], dict[str, float]]
"""Any measurement of a model: name -> value."""


@dataclass(frozen=True, kw_only=True)
class FidelityTexts:
    """The texts that fidelity is measured on when there is no data."""

    sequences: int = 64
    """How many are sampled from the fine-tune."""
    new_tokens: int = 128
    """Tokens sampled per text."""
    seed: int = 0
    """Of the sampling."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A drop study's arguments, checked."""

    strategies: tuple[str, ...]
    rates: tuple[Fraction, ...]
    scope: Scope
    seeds: int
    rescale: bool
    changed_only: bool
    include: str | None
    exclude: str | None
    metrics: tuple[str, ...]
    batch_tokens: int
    answer_pattern: re.Pattern[str] | None
    fidelity: FidelityTexts
    files: tuple[DataFile, ...]
    custom: str | None = field(default=None)

    @property
    def wants_fidelity(self) -> bool:
        """Without data and without a metric of the caller's; or where it is named."""
        named = _FIDELITY & set(self.metrics)
        return bool(named) or not (self.files or self.custom)

    def cells(self) -> list[Setting]:
        """All cells: the strategies in turn, rates ascending; seeds for the random one."""
        return [
            {"strategy": strategy, "scope": self.scope, "rate": float(rate), "seed": seed}
            for strategy in self.strategies
            for seed in range(self.seeds if strategy == "random" else 1)
            for rate in self.rates
        ]

    def drop_settings(self) -> list[DropSetting]:
        """What is selected for: every cell but the fine-tune and the base themselves."""
        return [
            DropSetting(check_strategy(strategy), rate, seed)
            for strategy in self.strategies
            for seed in range(self.seeds if strategy == "random" else 1)
            for rate in self.rates
            if 0 < rate < 1 or (rate == 1 and self.changed_only)
        ]


def drop_study(
    ft: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    strategies: Sequence[str] = STRATEGIES,
    rates: str | Iterable[Rate] = "0:1:0.1",
    scope: str = "tensor",
    seeds: int = 3,
    rescale: bool = False,
    changed_only: bool = False,
    data: Sequence[str | Path] = (),
    metrics: Sequence[str] = (),
    metric: Metric | None = None,
    answer_pattern: str | None = None,
    limit: int | None = None,
    fidelity: FidelityTexts = FidelityTexts(),
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int = 4096,
    include: str | None = None,
    exclude: str | None = None,
    fresh: bool = False,
    trust_remote_code: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Put back growing shares of a fine-tune's delta, and measure what is left of it.

    One model is loaded and edited in place for every cell, straight from the two checkpoints; at
    the end, and on any error, it has the fine-tune's bits back. Every finished cell is journalled:
    the same call again goes on where this one stopped.

    Args:
        ft, base: checkpoint folders.
        out: the study's folder.
        strategies: which entries go first: `salient`, `trivial`, `random`.
        rates: drop rates, as "0:1:0.1" or as numbers; 0 (the fine-tune) and 1 (the base) are
            always among them.
        scope: what is ranked together: `tensor`, `layer` or `global`.
        seeds: how many random orders.
        rescale: divide what is kept by 1 - rate (DARE).
        changed_only: count rates over entries that differ from the base.
        data: JSON-lines files; without any, fidelity to the fine-tune is measured.
        metrics: keep only these of the metrics measured; empty: all.
        metric: a measurement of your own, instead of the built-in ones.
        answer_pattern: regular expression that finds the answer in a longer text; then the model
            generates.
        limit: rows taken of each data file.
        fidelity: the texts sampled when there is no data.
        device, dtype: where and how the model is loaded; `auto`: CUDA if there is one, and the
            checkpoint's dtype.
        batch_tokens: positions in a batch.
        include, exclude: regular expressions over tensor names.
        fresh: discard what the folder holds of another study.
        trust_remote_code: run model code that the checkpoint brings.
        watch: told of stages, progress and finished cells.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch = watch or StudyWatch()
    if limit is not None and limit < 1:
        raise DeltaLensError(f"limit {limit}: at least 1 row")
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: at least 1")
    if batch_tokens < 1:
        raise DeltaLensError(f"batch_tokens {batch_tokens}: at least 1")
    if fidelity.sequences < 1 or fidelity.new_tokens < 2:
        raise DeltaLensError(f"fidelity needs a text of at least 2 tokens: {fidelity}")
    asked = _Asked(
        strategies=tuple(check_strategy(name) for name in dict.fromkeys(strategies)),
        rates=tuple(sorted({Fraction(0), Fraction(1), *exact_rates(rates)})),
        scope=check_scope(scope),
        seeds=seeds,
        rescale=rescale,
        changed_only=changed_only,
        include=include,
        exclude=exclude,
        metrics=tuple(metrics),
        batch_tokens=batch_tokens,
        answer_pattern=_pattern(answer_pattern),
        fidelity=fidelity,
        files=tuple(read_rows(path, limit) for path in data),
        custom=getattr(metric, "__qualname__", repr(metric)) if metric else None,
    )
    if not asked.strategies:
        raise DeltaLensError(f"no strategy: choose from {', '.join(STRATEGIES)}")
    _check_metrics(asked)
    pairing = pair(ft, base, include, exclude)
    where = pick_device(device)
    kind = pick_dtype(dtype, pairing.ft)
    out = Path(out)
    check_study_folder(out, [pairing.ft.path, pairing.base.path])
    check_fits(pairing.ft, kind, where, batch_tokens)
    folder = StudyFolder.open(
        out, "drop-study", _identity(asked, pairing, where, kind), COLUMNS, fresh
    )
    try:
        cells = asked.cells()
        if len(folder.cells) < len(cells):
            _Run(asked, pairing, folder, watch, metric).run(
                lambda: load_model(pairing.ft, kind, where, trust_remote_code)
            )
        else:
            folder.write_table(cells)
    finally:
        folder.close()
    return load_study(out)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text is not None else None
    except re.error as error:
        raise DeltaLensError(f"answer pattern {text!r}: no regular expression: {error}") from error


def _check_metrics(asked: _Asked) -> None:
    names = [file.name for file in asked.files]
    twice = [str(file.path) for file in asked.files if names.count(file.name) > 1]
    if twice:
        raise DeltaLensError(f"data files of the same name: {', '.join(twice)}; rename one")
    known = set(_FIDELITY) if not asked.custom else set()
    if asked.files:
        known |= {"loss", "perplexity"}
        if any(file.rows[0].answered for file in asked.files):
            known |= {"exact_match"}
    if len(asked.files) > 1:
        known |= {f"{file.name}/{name}" for file in asked.files for name in known - _FIDELITY}
    unknown = [name for name in asked.metrics if name not in known]
    if unknown and not asked.custom:
        raise DeltaLensError(
            f"metric {unknown[0]!r} is not measured here; there are {', '.join(sorted(known))}"
        )


def _identity(
    asked: _Asked, pairing: Pairing, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Everything that decides the numbers: two calls with the same are the same study."""
    return {
        "ft": pairing.ft.fingerprint,
        "base": pairing.base.fingerprint,
        "strategies": list(asked.strategies),
        "rates": [show_rate(rate) for rate in asked.rates],
        "scope": asked.scope,
        "seeds": asked.seeds,
        "rescale": asked.rescale,
        "changed_only": asked.changed_only,
        "include": asked.include,
        "exclude": asked.exclude,
        "data": [[file.name, len(file.rows), file.digest] for file in asked.files],
        "metrics": list(asked.metrics),
        "metric": asked.custom,
        "answer_pattern": asked.answer_pattern.pattern if asked.answer_pattern else None,
        "fidelity": [asked.fidelity.sequences, asked.fidelity.new_tokens, asked.fidelity.seed]
        if asked.wants_fidelity
        else None,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_tokens": asked.batch_tokens,
    }


class _Run:
    """One sitting of a drop study: from the loaded model to the last cell."""

    def __init__(
        self,
        asked: _Asked,
        pairing: Pairing,
        folder: StudyFolder,
        watch: StudyWatch,
        metric: Metric | None,
    ) -> None:
        self.asked, self.pairing, self.folder, self.watch = asked, pairing, folder, watch
        self.metric = metric
        self.selections: dict[DropSetting, dict[str, Selection]] = {}
        self.exact = {float(rate): rate for rate in asked.rates}

    def run(self, load: Callable[[], LoadedModel]) -> None:
        """Select, load, evaluate every cell that is left, and give the model its bits back."""
        self.select()
        self.watch.stage("loading the model", None)
        loaded = load()
        live = LiveModel(loaded.model, self.pairing)
        try:
            measure = self.evaluator(loaded)
            self.folder.write_manifest()

            def cell(setting: Setting) -> Metrics:
                self.edit(live, setting)
                return measure(loaded.model)

            run_cells(self.folder, self.asked.cells(), cell, self.watch, _same_point)
        finally:
            live.restore()

    def select(self) -> None:
        """One pass over the deltas: the selections of all cells, unit by unit."""
        settings = self.asked.drop_settings()
        self.selections = {setting: {} for setting in settings}
        units = self.pairing.units(self.asked.scope)
        self.watch.stage("ranking the delta", self.pairing.entries)
        unchanged = 0
        probe = settings or [DropSetting("trivial", Fraction(1, 2))]
        if all(setting.strategy == "random" for setting in probe):
            probe = [*probe, DropSetting("trivial", Fraction(0))]
        stream = DeltaStream()
        with workers() as each:
            for unit in units:
                found = select_unit(
                    unit, probe, stream, changed_only=self.asked.changed_only, each=each
                )
                unchanged += found.unchanged or 0
                for setting in settings:
                    for one in unit.pairs:
                        self.selections[setting][one.name] = found.selections[setting]
                self.watch.advance(unit.entries)
        if unchanged == self.pairing.entries:
            raise no_delta(self.pairing)
        self.folder.facts |= {
            "ft": str(self.pairing.ft.path),
            "base": str(self.pairing.base.path),
            "tensors": len(self.pairing.pairs),
            "units": len(units),
            "entries": self.pairing.entries,
            "unchanged": unchanged,
            "kept": len(self.pairing.kept),
            "notes": list(self.pairing.notes),
        }

    def edit(self, live: LiveModel, setting: Setting) -> None:
        """Make the live model the one of this cell."""
        rate = self.exact[setting["rate"]]
        if rate == 0:
            live.restore()
            return
        drop = DropSetting(setting["strategy"], rate, setting["seed"])
        if drop in self.selections:
            names = self.selections[drop]
            live.edit(names.__getitem__, rate if self.asked.rescale else None)
        else:
            everything = Selection("trivial", EVERYTHING, 0)
            live.edit(lambda name: everything)

    def evaluator(self, loaded: LoadedModel) -> Callable[[nn.Module], Metrics]:
        """What is measured in each cell, made ready once: nothing is tokenised again."""
        if self.metric is not None:
            return self._custom
        notes = self.folder.facts["notes"]
        parts: list[tuple[str, Callable[[nn.Module], Metrics]]] = []
        for file in self.asked.files:
            self.watch.stage(f"tokenising {file.path.name}", None)
            scoring = Scoring(
                file,
                loaded.model,
                loaded.tokenizer,
                self.asked.batch_tokens,
                self.asked.answer_pattern,
            )
            if scoring.left_out:
                notes.append(f"{file.path.name}: {scoring.left_out} rows too long, left out")
            prefix = f"{file.name}/" if len(self.asked.files) > 1 else ""
            parts.append((prefix, scoring.measure))
        if self.asked.wants_fidelity:
            parts.append(("", self._fidelity(loaded).measure))
        if loaded.fresh:
            notes.append(f"initialised at random, not in the checkpoint: {', '.join(loaded.fresh)}")

        def measure(model: nn.Module) -> Metrics:
            found = {p + n: m for p, part in parts for n, m in part(model).items()}
            wanted = self.asked.metrics
            return {
                name: m
                for name, m in found.items()
                if not wanted or name in wanted or name.split("/")[-1] in wanted
            }

        return measure

    def _custom(self, model: nn.Module) -> Metrics:
        assert self.metric is not None
        with torch.inference_mode():
            found = self.metric(model)
        return {str(name): Measurement(float(value)) for name, value in found.items()}

    def _fidelity(self, loaded: LoadedModel) -> Fidelity:
        """On texts sampled from the fine-tune, kept in the study and used again on resume."""
        file = self.folder.path / TEXTS
        want = self.asked.fidelity
        if not can_generate(loaded.model):
            self.folder.facts["notes"].append(
                f"{type(loaded.model).__name__} cannot generate: fidelity is measured on random "
                "tokens of its vocabulary"
            )
        if self.folder.cells and file.exists():
            texts = json.loads(file.read_text(encoding="utf-8"))
        else:
            self.watch.stage("sampling texts from the fine-tune", want.sequences)
            texts = sample_texts(
                loaded.model, want.sequences, want.new_tokens, want.seed, self.watch.advance
            )
            write_whole(file, (json.dumps(texts) + "\n").encode())
        self.watch.stage("the fine-tune's own answers", len(texts))
        return Fidelity(loaded.model, texts, self.watch.advance)


def _same_point(setting: Setting) -> str | None:
    """Rate 0 is the fine-tune and rate 1 the base, whatever the strategy and the seed."""
    return {0.0: "fine-tune", 1.0: "base"}.get(setting["rate"])
