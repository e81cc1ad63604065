"""What is measured at every point of a scan, made ready once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import nn

from deltalens.io.records import Measurement, StudyFolder
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.loading import LoadedModel
from deltalens.studies.drop_asked import FIDELITY, Metric, measured_by
from deltalens.studies.engine import Metrics, StudyWatch
from deltalens.studies.landscape.asked import Asked
from deltalens.studies.texts import fidelity_of

__all__ = ["CUSTOM", "TEXTS", "Measure", "Measuring", "custom_measure", "finite"]

CUSTOM = "-"
"""The data column of a measurement of the caller's whose name has no data in it."""
TEXTS = "texts"
"""The data column of fidelity."""

Measure = Callable[[nn.Module], Mapping[str, Metrics]]
"""From a model to its metrics, for each data set."""


class Measuring:
    """Every data file tokenised once, to be measured at every point.

    Args:
        asked: what.
        loaded: the origin.
        folder: of the study: its notes are added to, and texts that fidelity is measured on are
            kept there for the next sitting.
        watch: told of stages.
    """

    def __init__(
        self, asked: Asked, loaded: LoadedModel, folder: StudyFolder, watch: StudyWatch
    ) -> None:
        self._wanted = asked.metrics
        self.scorings: dict[str, Scoring] = {}
        """By the data file's name."""
        notes = folder.facts["notes"]
        for file in asked.files:
            watch.stage(f"tokenising {file.path.name}", None)
            scoring = Scoring(
                file, loaded.model, loaded.tokenizer, asked.batch_tokens, asked.answer_pattern
            )
            scoring.check(loaded.model, folder.facts["models"][0])
            if scoring.left_out:
                notes.append(
                    f"{file.path.name}: {scoring.left_out} rows left out: too long, or no token "
                    "to predict"
                )
            self.scorings[file.name] = scoring
        self._fidelity = (
            fidelity_of(loaded, asked.fidelity, folder, watch, "the origin")
            if asked.wants_fidelity
            else None
        )

    def __call__(self, model: nn.Module) -> Mapping[str, Metrics]:
        """Data -> metric -> measurement."""
        found = {name: self._kept(part.measure(model)) for name, part in self.scorings.items()}
        if self._fidelity is not None:
            found[TEXTS] = self._kept(self._fidelity.measure(model))
        return {name: metrics for name, metrics in found.items() if metrics}

    def _kept(self, metrics: Metrics) -> Metrics:
        # Fidelity alone was named: the data is measured as if nothing had been.
        named = set(self._wanted)
        if not named or (not named & metrics.keys() and named <= FIDELITY):
            return metrics
        return {name: m for name, m in metrics.items() if name in named}


def custom_measure(metric: Metric) -> Measure:
    """A measurement of the caller's. What is called `train/loss` is the loss on `train`."""

    def measure(model: nn.Module) -> Mapping[str, Metrics]:
        found: dict[str, Metrics] = {}
        for name, value in measured_by(metric, model).items():
            data, _, short = name.rpartition("/")
            found.setdefault(data or CUSTOM, {})[short] = Measurement(value)
        return found

    return measure


def finite(found: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """The same, with NaN for what is infinite: neither is a height."""
    return {
        data: {
            name: m if math.isfinite(m.value) else Measurement(math.nan, math.nan, m.n)
            for name, m in metrics.items()
        }
        for data, metrics in found.items()
    }
