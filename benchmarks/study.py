"""How much of a drop study is not evaluation, on the demo's pair."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

import deltalens
from deltalens.demo import build_demo
from deltalens.io.records import Measurement
from deltalens.scoring.fidelity import Fidelity
from deltalens.scoring.file_scoring import Scoring
from deltalens.studies.engine import StudyWatch

DEMO = Path("deltalens-demo")


def run() -> None:
    """With data and without: time between evaluations, as a share of the cells' time."""
    paths = build_demo(DEMO)
    for name, kind, data in (
        ("study-maths", Scoring, [paths.data["maths"]["test"]]),
        ("study-fidelity", Fidelity, []),
    ):
        with tempfile.TemporaryDirectory() as folder:
            clock = _Clock(kind)
            record = deltalens.drop_study(
                paths.ft, paths.base, Path(folder) / "study", data=data, watch=clock.watch
            )
            clock.stop()
        cells = len(record.cells.drop_duplicates(["strategy", "rate", "seed"]))
        line = {
            "name": f"between-cells-{name}",
            "cells": cells,
            "seconds": round(clock.total, 3),
            "evaluating": round(clock.evaluating, 3),
            "share_between": round(1 - clock.evaluating / clock.total, 4),
        }
        print(json.dumps(line), flush=True)


class _Clock:
    """Times the cells of a study, and inside them the evaluation."""

    def __init__(self, kind: type[Scoring] | type[Fidelity]) -> None:
        self.evaluating = self.total = self._begun = 0.0
        self._kind, self._measure = kind, kind.measure
        self.watch = StudyWatch(stage=self._stage)

        def timed(this: Any, model: nn.Module) -> dict[str, Measurement]:
            begun = time.perf_counter()
            found = self._measure(this, model)
            self.evaluating += time.perf_counter() - begun
            return found

        kind.measure = timed  # type: ignore[method-assign, assignment]

    def _stage(self, name: str, total: int | None) -> None:
        if name == "cells":
            self._begun = time.perf_counter()

    def stop(self) -> None:
        """The study is over."""
        self.total = time.perf_counter() - self._begun
        self._kind.measure = self._measure  # type: ignore[method-assign]
