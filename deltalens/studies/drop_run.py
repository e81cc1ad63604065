"""What one invocation of a drop study does: it selects, prepares a worker, and has it, or others
like it, measure every cell that is left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from deltalens.errors import DeltaLensError, describe_error
from deltalens.io.records import Measurement, Setting, StudyFolder
from deltalens.numerics.selection import Selection
from deltalens.numerics.workers import workers
from deltalens.scoring.loading import LoadedModel, check_fits
from deltalens.scoring.suite import Metrics, ReadySuite
from deltalens.scoring.texts import KeptTexts, Progress, vocabulary_of
from deltalens.studies.deltas import DeltaStream
from deltalens.studies.drop_spec import BASE, DropSpec
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Tell
from deltalens.studies.live import LiveModel
from deltalens.studies.paired import PairedModels, PairRecipe, at_work
from deltalens.studies.selecting import DropSetting, no_delta, select_unit

__all__ = ["DropWorker", "measure_drops"]

_FINE_TUNE = "fine-tune"

Selections = Mapping[DropSetting, Mapping[str, Selection]]
"""Of every setting: the selection of each tensor's unit, by the tensor's stored name."""


@dataclass(frozen=True, kw_only=True)
class DropRecipe(PairRecipe):
    """How a drop study's worker is prepared."""

    spec: DropSpec
    selections: Selections

    def prepare(self, watch: Progress) -> DropWorker:
        """See `Recipe`."""
        return DropWorker(self, watch)


@dataclass(frozen=True)
class _Unmeasured:
    """A model that cannot be measured."""

    why: str


class DropWorker:
    """A live model that each cell is made of, straight from the two checkpoints (see `Worker`)."""

    def __init__(self, recipe: DropRecipe, watch: Progress) -> None:
        self._recipe, pairing = recipe, recipe.models.pairing
        self._exact = {float(rate): rate for rate in recipe.spec.rates}
        watch.stage("loading the model", None)
        self._loaded = recipe.models.loading.load(pairing.ft)
        self._live = LiveModel(self._loaded.model, pairing)
        self._suite = ReadySuite(
            recipe.spec.suite, self._loaded, pairing.ft.path, recipe.texts, watch
        )
        self.notes = self._suite.notes

    def measure(self, setting: Setting, tell: Tell) -> Metrics | _Unmeasured:
        """See `Worker`."""
        if setting["strategy"] == BASE:
            self._live.restore()
            return self._measure_base()
        self.edit(setting)
        found = self._suite.measure(self._loaded.model)
        if setting["rate"] == 0:
            self._suite.check_first(found, self._loaded.model)
        return found

    def edit(self, setting: Setting) -> None:
        """Make the live model the one of this cell."""
        rate = self._exact[setting["rate"]]
        if rate == 0:
            self._live.restore()
            return
        drop = DropSetting(setting["strategy"], rate, setting["seed"])
        if drop in self._recipe.selections:
            names = self._recipe.selections[drop]
            self._live.edit(names.__getitem__, rate if self._recipe.spec.rescale else None)
        else:
            self._live.put_back_all()

    def close(self) -> None:
        """See `Worker`."""
        if vars(self):
            self._live.restore()
            vars(self).clear()

    def _measure_base(self) -> Metrics | _Unmeasured:
        """The base's own model, where putting everything back does not make it."""
        try:
            base = self._load_base()
            rows = [vocabulary_of(loaded.model) for loaded in (self._loaded, base)]
            if rows[1] < rows[0]:
                raise DeltaLensError(f"it knows {rows[1]:,} tokens of the fine-tune's {rows[0]:,}")
            return self._suite.measure(base.model)
        except Exception as error:  # Another model than the metrics were made for: any kind.
            return _Unmeasured(
                str(error) if isinstance(error, DeltaLensError) else describe_error(error)
            )

    def _load_base(self) -> LoadedModel:
        """As a model of its own, beside the fine-tune."""
        base, loading = self._recipe.models.pairing.base, self._recipe.models.loading
        batch_tokens = self._recipe.spec.suite.batch_tokens
        check_fits(base, loading.dtype, loading.device, batch_tokens)
        return loading.load(base)


def measure_drops(
    spec: DropSpec,
    models: PairedModels,
    folder: StudyFolder,
    watch: StudyWatch,
    jobs: int,
    executor: str | None,
) -> None:
    """Measure every cell that is left.

    Args:
        spec: the study.
        models: the fine-tune and its base.
        folder: open for writing.
        watch: told of stages, progress and finished cells.
        jobs, executor: as `run_cells` takes them.
    """

    def cells_of(
        setting: Setting, found: Metrics | _Unmeasured
    ) -> Sequence[tuple[Setting, Metrics]]:
        if isinstance(found, _Unmeasured):
            # Its values are NaN, and a note says why.
            note = f"the base's own model cannot be measured beside the fine-tune: {found.why}"
            folder.facts["notes"].append(note)
            folder.write_manifest()
            names = {name for done in folder.cells for name in done.metrics}
            found = {name: Measurement(math.nan) for name in sorted(names)}
        return [(setting, found)]

    recipe = DropRecipe(
        spec=spec,
        models=models,
        texts=KeptTexts(folder.path, again=bool(folder.cells)),
        selections=_select(spec, models, folder, watch),
    )
    with at_work(recipe, folder, watch) as worker:
        run_cells(
            folder,
            spec.cells(bool(models.pairing.unpaired)),
            recipe.elsewhere(),
            worker,
            watch,
            same=_same_point,
            after=_ground,
            cells_of=cells_of,
            jobs=jobs,
            executor=executor,
        )


def _select(
    spec: DropSpec, models: PairedModels, folder: StudyFolder, watch: StudyWatch
) -> Selections:
    """One pass over the deltas: the selections of all cells, unit by unit.

    Raises:
        DeltaLensError: there is no delta.
    """
    pairing, settings = models.pairing, spec.drop_settings()
    selections: dict[DropSetting, dict[str, Selection]] = {one: {} for one in settings}
    units = pairing.units(spec.scope)
    watch.stage("ranking the delta", pairing.entries)
    unchanged = 0
    probe = settings or [DropSetting("trivial", Fraction(1, 2))]
    if all(setting.strategy == "random" for setting in probe):
        probe = [*probe, DropSetting("trivial", Fraction(0))]
    stream = DeltaStream()
    with workers() as mapper:
        for unit in units:
            found = select_unit(unit, probe, stream, changed_only=spec.changed_only, mapper=mapper)
            unchanged += found.unchanged or 0
            for setting in settings:
                for one in unit.pairs:
                    selections[setting][one.name] = found.selections[setting]
            watch.advance(unit.entries)
    if unchanged == pairing.entries:
        raise no_delta(pairing)
    folder.facts |= models.facts(unchanged, {"units": len(units)})
    return selections


def _same_point(setting: Setting) -> str | None:
    """Rate 0 is the fine-tune, and at rate 1 all is put back, whatever strategy and seed."""
    if setting["strategy"] == BASE:
        return "the base's own model"
    return {0.0: _FINE_TUNE, 1.0: "all put back"}.get(setting["rate"])


def _ground(setting: Setting) -> str | None:
    """What the base's own model has to be measured by is known once the fine-tune is measured."""
    return _FINE_TUNE if setting["strategy"] == BASE else None
