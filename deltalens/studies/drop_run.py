"""One sitting of a drop study: from the loaded model to the last cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from torch import nn

from deltalens.errors import DeltaLensError, reason
from deltalens.io.pairing import Pairing
from deltalens.io.records import Measurement, Setting, StudyFolder
from deltalens.numerics.selection.prefix import Selection
from deltalens.numerics.workers import workers
from deltalens.scoring.fidelity import Fidelity
from deltalens.scoring.file_scoring import Scoring, can_generate
from deltalens.scoring.finite import check_measured
from deltalens.scoring.loading import LoadedModel
from deltalens.studies.deltas import DeltaStream
from deltalens.studies.drop_asked import BASE, DropAsked, MeasureAsked, Metric, measured_by
from deltalens.studies.engine import Metrics, StudyWatch, run_cells
from deltalens.studies.executors import Tell
from deltalens.studies.live import LiveModel
from deltalens.studies.selecting import DropSetting, no_delta, select_unit
from deltalens.studies.texts import fidelity_of, vocabulary_of

__all__ = ["DropRun", "Evaluation"]


class Evaluation:
    """What a study of two checkpoints measures in each cell."""

    def __init__(
        self,
        measured: MeasureAsked,
        pairing: Pairing,
        folder: StudyFolder,
        watch: StudyWatch,
        metric: Metric | None,
    ) -> None:
        self.measured, self.pairing, self.folder, self.watch = measured, pairing, folder, watch
        self.metric = metric

    def evaluator(self, loaded: LoadedModel) -> Callable[[nn.Module], Metrics]:
        """What is measured in each cell, made ready once: nothing is tokenised again."""
        if self.metric is not None:
            return self._custom
        notes = self.folder.facts["notes"]
        parts: list[tuple[str, Callable[[nn.Module], Metrics]]] = []
        for file in self.measured.files:
            self.watch.stage(f"tokenising {file.path.name}", None)
            scoring = Scoring(
                file,
                loaded.model,
                loaded.tokenizer,
                self.measured.batch_tokens,
                self.measured.answer_pattern,
            )
            scoring.check(loaded.model, self.pairing.ft.path)
            if scoring.left_out:
                notes.append(
                    f"{file.path.name}: {scoring.left_out} rows left out: too long, or "
                    "no token to predict"
                )
            prefix = f"{file.name}/" if len(self.measured.files) > 1 else ""
            parts.append((prefix, scoring.measure))
        if self.measured.wants_fidelity:
            parts.append(("", self._fidelity(loaded).measure))
        if loaded.fresh:
            notes.append(f"initialised at random, not in the checkpoint: {', '.join(loaded.fresh)}")

        def measure(model: nn.Module) -> Metrics:
            found = {p + n: m for p, part in parts for n, m in part(model).items()}
            wanted = self.measured.metrics
            return {
                name: m
                for name, m in found.items()
                if not wanted or name in wanted or name.split("/")[-1] in wanted
            }

        return measure

    def _custom(self, model: nn.Module) -> Metrics:
        assert self.metric is not None
        return {name: Measurement(value) for name, value in measured_by(self.metric, model).items()}

    def _fidelity(self, loaded: LoadedModel) -> Fidelity:
        """On texts sampled from the fine-tune, kept in the study and used again on resume."""
        if not can_generate(loaded.model):
            self.folder.facts["notes"].append(
                f"{type(loaded.model).__name__} cannot generate: fidelity is measured on random "
                "tokens of its vocabulary"
            )
        want = self.measured.fidelity
        return fidelity_of(loaded, want, self.folder, self.watch, "the fine-tune")


class DropRun(Evaluation):
    """One sitting of a drop study: from the loaded model to the last cell."""

    def __init__(
        self,
        asked: DropAsked,
        pairing: Pairing,
        folder: StudyFolder,
        watch: StudyWatch,
        metric: Metric | None,
    ) -> None:
        super().__init__(asked, pairing, folder, watch, metric)
        self.asked = asked
        self.selections: dict[DropSetting, dict[str, Selection]] = {}
        self.exact = {float(rate): rate for rate in asked.rates}

    def run(self, load: Callable[[], LoadedModel], load_base: Callable[[], LoadedModel]) -> None:
        """Select, load, evaluate every cell that is left, and give the model its bits back."""
        self.select()
        self.watch.stage("loading the model", None)
        loaded = load()
        live = LiveModel(loaded.model, self.pairing)
        try:
            measure = self.evaluator(loaded)
            self.folder.write_manifest()

            def cell(setting: Setting, tell: Tell) -> Metrics:
                if setting["strategy"] == BASE:
                    live.restore()
                    return self.measure_base(loaded, load_base, measure)
                self.edit(live, setting)
                found = measure(loaded.model)
                if setting["rate"] == 0 and self.metric is None:
                    check_measured(found, loaded.model, self.pairing.ft.path)
                return found

            cells = self.asked.cells(bool(self.pairing.unpaired))
            run_cells(self.folder, cells, cell, self.watch, _same_point)
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
            "unpaired": self.pairing.unpaired,
            "notes": list(self.pairing.notes),
        }

    def measure_base(
        self,
        ft: LoadedModel,
        load: Callable[[], LoadedModel],
        measure: Callable[[nn.Module], Metrics],
    ) -> Metrics:
        """The base's own model, where putting everything back does not make it. Where it cannot be
        measured as the fine-tune is, its values are NaN, and a note says why."""
        try:
            base = load()
            rows = [vocabulary_of(loaded.model) for loaded in (ft, base)]
            if rows[1] < rows[0]:
                raise DeltaLensError(f"it knows {rows[1]:,} tokens of the fine-tune's {rows[0]:,}")
            return measure(base.model)
        except Exception as error:  # Another model than the metrics were made for: any kind.
            said = str(error) if isinstance(error, DeltaLensError) else reason(error)
            note = f"the base's own model cannot be measured beside the fine-tune: {said}"
            self.folder.facts["notes"].append(note)
            self.folder.write_manifest()
            names = {name for done in self.folder.cells for name in done.metrics}
            return {name: Measurement(math.nan) for name in sorted(names)}

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
            live.put_back_all()


def _same_point(setting: Setting) -> str | None:
    """Rate 0 is the fine-tune, and at rate 1 all is put back, whatever strategy and seed."""
    if setting["strategy"] == BASE:
        return "the base's own model"
    return {0.0: "fine-tune", 1.0: "all put back"}.get(setting["rate"])
