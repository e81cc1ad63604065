"""One sitting of a drop study: from the loaded model to the last cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from deltalens.errors import DeltaLensError, reason
from deltalens.io.pairing import Pairing
from deltalens.io.records import Measurement, Setting, StudyFolder
from deltalens.numerics.selection import Selection
from deltalens.numerics.workers import workers
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.suite import Metrics, ReadySuite
from deltalens.scoring.texts import KeptTexts, vocabulary_of
from deltalens.studies.deltas import DeltaStream
from deltalens.studies.drop_asked import BASE, DropAsked
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Tell
from deltalens.studies.live import LiveModel
from deltalens.studies.selecting import DropSetting, no_delta, select_unit

__all__ = ["DropRun"]


class DropRun:
    """One sitting of a drop study: from the loaded model to the last cell."""

    def __init__(
        self,
        asked: DropAsked,
        pairing: Pairing,
        folder: StudyFolder,
        watch: StudyWatch,
    ) -> None:
        self.asked, self.pairing, self.folder, self.watch = asked, pairing, folder, watch
        self.selections: dict[DropSetting, dict[str, Selection]] = {}
        self.exact = {float(rate): rate for rate in asked.rates}

    def run(self, load: Callable[[], LoadedModel], load_base: Callable[[], LoadedModel]) -> None:
        """Select, load, evaluate every cell that is left, and give the model its bits back."""
        self.select()
        self.watch.stage("loading the model", None)
        loaded = load()
        live = LiveModel(loaded.model, self.pairing)
        try:
            texts = KeptTexts(self.folder.path, bool(self.folder.cells))
            suite = ReadySuite(self.asked.suite, loaded, self.pairing.ft.path, texts, self.watch)
            self.folder.facts["notes"] += suite.notes
            self.folder.write_manifest()

            def cell(setting: Setting, tell: Tell) -> Metrics:
                if setting["strategy"] == BASE:
                    live.restore()
                    return self.measure_base(loaded, load_base, suite)
                self.edit(live, setting)
                found = suite.measure(loaded.model)
                if setting["rate"] == 0:
                    suite.check_first(found, loaded.model)
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
        suite: ReadySuite,
    ) -> Metrics:
        """The base's own model, where putting everything back does not make it. Where it cannot be
        measured as the fine-tune is, its values are NaN, and a note says why."""
        try:
            base = load()
            rows = [vocabulary_of(loaded.model) for loaded in (ft, base)]
            if rows[1] < rows[0]:
                raise DeltaLensError(f"it knows {rows[1]:,} tokens of the fine-tune's {rows[0]:,}")
            return suite.measure(base.model)
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
