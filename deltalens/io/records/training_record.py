"""A training, read from its folder. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.escaping import short_path
from deltalens.io.records.folder import Manifest
from deltalens.io.records.journal import Measurement
from deltalens.io.records.metrics import METRICS, Metrics
from deltalens.io.records.run import RUN as RUN_MANIFEST
from deltalens.io.records.run import is_run
from deltalens.io.records.schema import Fields, Named, Real, Text

__all__ = [
    "CONFIG",
    "RUN",
    "TRAINING",
    "TrainingRecord",
    "find_run",
    "is_training",
    "load_training",
]

TRAINING = Manifest(
    "training",
    "train.json",
    Fields({"asked": Fields(), "facts": Fields(known={"removed": Named(Real(0, 1), Text())})}),
)
RUN = "run"
"""The folder of a probe's run in that of a training."""
CONFIG = "config.json"
"""The file that a training writes last: with it, the folder holds the result."""


@dataclass(frozen=True, repr=False)
class TrainingRecord:
    """A training, read from its folder."""

    path: Path
    spec: dict[str, Any]
    """The specification: everything that decided the result."""
    facts: dict[str, Any]
    """Facts found on the way and, if the training is finished, its results."""

    def __repr__(self) -> str:
        method = str(self.spec.get("method", "unknown method"))[:40]
        state = "finished" if self.finished else "not finished"
        return f"<TrainingRecord {short_path(self.path)}: {method}, {state}>"

    @property
    def finished(self) -> bool:
        """Whether its folder holds the result."""
        return (self.path / CONFIG).exists()

    def evaluations(self, of: str = "evaluated") -> list[tuple[int, str, Measurement]]:
        """Read what was measured on the way and at the end.

        Args:
            of: `evaluated`, or `choosing`: on the rows by which a checkpoint is chosen.

        Returns:
            Optimizer step, metric and measurement, in the order in which they were measured.

        Raises:
            RecordError: the file of metrics is damaged.
        """
        file = self.path / METRICS
        found = []
        for line in Metrics(self.path).lines():
            measured = line.get(of, {})
            try:
                found += [(line["step"], name, Measurement(*one)) for name, one in measured.items()]
            except (TypeError, AttributeError) as error:
                raise RecordError(f"{file}: damaged: an evaluation is {measured!r:.80}") from error
        return found

    def logged(self) -> dict[str, dict[int, float]]:
        """Read what was logged of the optimizer steps: `loss`, `learning_rate`, `grad_norm`, ...

        Returns:
            Name -> step -> value, in the order of the steps.

        Raises:
            RecordError: the file of metrics is damaged.
        """
        found: dict[str, dict[int, float]] = {}
        for line in Metrics(self.path).lines():
            for name, value in line.items() if "loss" in line else ():
                if name == "step":
                    continue
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise RecordError(
                        f"{self.path / METRICS}: damaged: {name!r:.40} is {value!r:.80}"
                    )
                found.setdefault(name, {})[line["step"]] = float(value)
        return {name: dict(sorted(steps.items())) for name, steps in found.items()}


def is_training(folder: str | Path) -> bool:
    """Tell whether a folder is a training's.

    Returns:
        Whether it has a training's manifest.
    """
    return Path(folder, TRAINING.name).is_file()


def load_training(folder: str | Path) -> TrainingRecord:
    """Read a training's specification and facts, finished or not. torch is not imported.

    Args:
        folder: the training's folder.

    Returns:
        The record.

    Raises:
        RecordError: the folder is not a training, is damaged, or has a format that this version
            does not know.
    """
    manifest = TRAINING.read(Path(folder))
    return TrainingRecord(Path(folder), manifest["asked"], manifest["facts"])


def find_run(folder: str | Path) -> Path:
    """Find the folder of a probe's run.

    Args:
        folder: of a run, or of a training that was watched by a probe.

    Returns:
        The folder itself if it is a run's; in a training's folder the run of its last start. (A
        training that is resumed logs another run.)

    Raises:
        RecordError: the folder holds neither, or the training was not watched by a probe.
    """
    path = Path(folder)
    if is_run(path):
        return path
    if not is_training(path):
        raise RecordError(
            f"{path}: no run here (no {RUN_MANIFEST.name}), and no training that could hold one "
            f"(no {TRAINING.name})"
        )
    starts = {path / RUN: "0"}
    starts |= {run: run.name.removeprefix(f"{RUN}-from-") for run in path.glob(f"{RUN}-from-*")}
    runs = {run: int(step) for run, step in starts.items() if step.isdecimal() and is_run(run)}
    if not runs:
        raise RecordError(f"{path}: a training without a run: train with probe to log one")
    return max(runs, key=runs.__getitem__)
