"""The work of one invocation of a drop study: select entries, prepare workers, and measure every
cell that is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from deltalens.errors import DeltaLensError, describe_error
from deltalens.io.records import Measurement, Setting, StudyFolder
from deltalens.numerics.selection import Selection
from deltalens.numerics.workers import workers
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.ready_suite import ReadySuite
from deltalens.scoring.suite import Metrics
from deltalens.scoring.texts import Progress, StoredTexts, vocabulary_of
from deltalens.studies.deltas import DeltaStream
from deltalens.studies.drop_spec import BASE, DropSpec
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Report
from deltalens.studies.live import LiveModel
from deltalens.studies.measuring import Measuring
from deltalens.studies.paired import PairedModels, PairRecipe, at_work
from deltalens.studies.selecting import DropSetting, no_delta, select_unit

__all__ = ["DropWorker", "measure_drops", "point_of"]

_FINE_TUNE = "fine-tune"

Selections = Mapping[DropSetting, Mapping[str, Selection]]
"""Drop -> stored name of a tensor -> the selection on the tensor's unit."""


@dataclass(frozen=True, kw_only=True)
class DropRecipe(PairRecipe):
    """Prepares the workers of a drop study (see `Recipe`)."""

    spec: DropSpec
    selections: Selections

    def prepare(self, watch: Progress) -> DropWorker:
        """See `Recipe`."""
        return DropWorker(self, watch)


@dataclass(frozen=True)
class _Unmeasured:
    """The base cannot be measured."""

    reason: str


class DropWorker:
    """A live model that is edited for each cell, from the two checkpoints (see `Worker`)."""

    def __init__(self, recipe: DropRecipe, watch: Progress) -> None:
        self._recipe, pairing = recipe, recipe.models.pairing
        self._exact_rates = {float(rate): rate for rate in recipe.spec.rates}
        watch.stage("loading the model", None)
        self._loaded = recipe.models.loading.load(pairing.ft)
        self._live = LiveModel(self._loaded.model, pairing)
        self._suite = ReadySuite(
            recipe.spec.suite, self._loaded, pairing.ft.path, recipe.texts, watch
        )
        self.notes = self._suite.notes

    def measure(self, setting: Setting, report: Report) -> Metrics | _Unmeasured:
        """See `Worker`."""
        if setting["strategy"] == BASE:
            self._live.restore()
            return self._measure_base(report)
        self.edit(setting)
        metrics = self._suite.measure(self._loaded.model, report)
        if setting["rate"] == 0:
            self._suite.check_first(metrics, self._loaded.model)
        return metrics

    def edit(self, setting: Setting) -> None:
        """Edit the live model for a cell.

        Args:
            setting: the cell's, of any strategy but the base.
        """
        rate = self._exact_rates[setting["rate"]]
        if rate == 0:
            self._live.restore()
            return
        drop = DropSetting(setting["strategy"], rate, setting["seed"])
        if drop in self._recipe.selections:
            selections = self._recipe.selections[drop]
            self._live.edit(selections.__getitem__, rate if self._recipe.spec.rescale else None)
        else:
            self._live.put_back_all()

    def close(self) -> None:
        """See `Worker`."""
        if vars(self):
            self._live.restore()
            vars(self).clear()

    def _measure_base(self, report: Report) -> Metrics | _Unmeasured:
        """Measure the base as a model of its own, where reverting all entries does not yield it."""
        try:
            base = self._load_base()
            known, needed = (vocabulary_of(loaded.model) for loaded in (base, self._loaded))
            if known < needed:
                raise DeltaLensError(
                    f"its vocabulary has {known:,} tokens, that of the fine-tune {needed:,}"
                )
            return self._suite.measure(base.model, report)
        except Exception as error:  # The metrics were written for the fine-tune: anything can fail.
            return _Unmeasured(
                str(error) if isinstance(error, DeltaLensError) else describe_error(error)
            )

    def _load_base(self) -> LoadedModel:
        """Load the base beside the fine-tune."""
        base, loading = self._recipe.models.pairing.base, self._recipe.models.loading
        batch_tokens = self._recipe.spec.suite.batch_tokens
        loading.check_fits(base, batch_tokens)
        return loading.load(base)


def measure_drops(
    spec: DropSpec,
    models: PairedModels,
    folder: StudyFolder,
    measuring: Measuring,
) -> None:
    """Measure every cell that is left.

    Args:
        spec: the study's specification.
        models: the fine-tune and its base.
        folder: the study's folder, open for writing.
        measuring: by how many workers, and whom to tell of progress.

    Raises:
        DeltaLensError: there is no delta, a model is not finite, or a worker failed.
    """

    def cells_of(
        setting: Setting, measured: Metrics | _Unmeasured
    ) -> Sequence[tuple[Setting, Metrics]]:
        if isinstance(measured, _Unmeasured):
            # The cell's values are NaN, and a note says why.
            note = f"the base cannot be measured as a model of its own: {measured.reason}"
            folder.facts["notes"].append(note)
            folder.write_manifest()
            names = {name for done in folder.cells for name in done.metrics}
            measured = {name: Measurement(math.nan) for name in sorted(names)}
        return [(setting, measured)]

    watch = measuring.watch
    recipe = DropRecipe(
        spec=spec,
        models=models,
        texts=StoredTexts(folder.path, reuse=bool(folder.cells)),
        selections=_select(spec, models, folder, watch),
    )
    with at_work(recipe, folder, measuring) as worker:
        run_cells(
            folder,
            spec.cells(bool(models.pairing.unpaired)),
            recipe.elsewhere(),
            worker,
            watch,
            point_of=point_of,
            requires=_requires,
            cells_of=cells_of,
            execution=measuring.execution,
            tasks=spec.suite.tasks,
        )


def _select(
    spec: DropSpec, models: PairedModels, folder: StudyFolder, watch: StudyWatch
) -> Selections:
    """Select the entries of all drops, in one pass over the deltas.

    Raises:
        DeltaLensError: there is no delta.
    """
    pairing, settings = models.pairing, spec.drop_settings()
    selections: dict[DropSetting, dict[str, Selection]] = {setting: {} for setting in settings}
    units = pairing.units(spec.scope)
    watch.stage("ranking the delta", pairing.entries)
    unchanged = 0
    # `random` alone would not read the deltas: whether there is one would stay unknown.
    to_select = settings or [DropSetting("trivial", Fraction(1, 2))]
    if all(setting.strategy == "random" for setting in to_select):
        to_select = [*to_select, DropSetting("trivial", Fraction(0))]
    stream = DeltaStream()
    with workers() as mapper:
        for unit in units:
            selected = select_unit(
                unit, to_select, stream, changed_only=spec.changed_only, mapper=mapper
            )
            unchanged += selected.unchanged or 0
            for setting in settings:
                for pair in unit.pairs:
                    selections[setting][pair.name] = selected.selections[setting]
            watch.advance(unit.entries)
    if unchanged == pairing.entries:
        raise no_delta(pairing)
    folder.facts |= models.facts(unchanged, {"units": len(units)})
    return selections


def point_of(setting: Setting) -> str | None:
    """Name the model of a cell: at rate 0 it is the fine-tune, and at rate 1 all entries are
    reverted, for every strategy and seed.

    Args:
        setting: of the cell.

    Returns:
        A name that equal models share; None for a model of the cell's own.
    """
    if setting["strategy"] == BASE:
        return "base"
    return {0.0: _FINE_TUNE, 1.0: "all reverted"}.get(setting["rate"])


def _requires(setting: Setting) -> str | None:
    """The fine-tune comes before the base: its metrics are needed if the base has none."""
    return _FINE_TUNE if setting["strategy"] == BASE else None
