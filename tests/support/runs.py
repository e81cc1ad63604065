"""Ways to run a study in a test, and to look at what it did."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from typer.testing import CliRunner, Result

import deltalens
from deltalens.cli.main import app
from deltalens.io.records import Cell
from deltalens.scoring.texts import FidelityTexts
from deltalens.studies.engine import StudyWatch
from tests.support.checkpoint_pairs import Pair, States, state_of

FEW = FidelityTexts(sequences=6, new_tokens=8)
"""Fidelity that costs nothing."""

Point = tuple[str, float, int]
"""Strategy, rate, seed."""


def command(*arguments: object, env: dict[str, str] | None = None) -> Result:
    """Run `deltalens ...` in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def succeeds(*arguments: object, env: dict[str, str] | None = None) -> str:
    """Run `deltalens ...`, which has to succeed; what it printed on stdout."""
    result = command(*arguments, env=env)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return result.stdout


@dataclass
class Capture:
    """A metric and a watch that keep the model's state at every cell that is computed."""

    states: dict[Point, States] = field(default_factory=dict)
    model: nn.Module | None = None
    measured: int = 0
    _last: States = field(default_factory=dict)

    def metric(self, model: nn.Module) -> dict[str, float]:
        """The measurement: how often one was taken."""
        self.model = model
        self._last = state_of(model)
        self.measured += 1
        return {"measured": float(self.measured)}

    def watch(self) -> StudyWatch:
        """Tells which cell the last state was of."""

        def on_cell(folder: Path, cell: Cell) -> None:
            point = cell.setting["strategy"], cell.setting["rate"], cell.setting["seed"]
            self.states[point] = self._last

        return StudyWatch(on_cell=on_cell)


def captured(pair: Pair, out: Path, **spec: Any) -> Capture:
    """Run a drop study that keeps the model's state at every cell."""
    found = Capture()
    deltalens.drop_study(pair.ft, pair.base, out, metric=found.metric, watch=found.watch(), **spec)
    return found


def journal(study: Path) -> list[dict[str, Any]]:
    """The lines of a study's journal."""
    return [json.loads(line) for line in (study / "cells.jsonl").read_text().splitlines()]


def settings(study: Path) -> list[str]:
    """Which cells a journal holds, in its order."""
    return [json.dumps(line["setting"]) for line in journal(study)]


def table(study: Path) -> bytes:
    """`cells.csv`, byte for byte."""
    return (study / "cells.csv").read_bytes()


class StopAfter:
    """A callable that raises at its n-th call, and then never again."""

    def __init__(self, calls: int, error: BaseException) -> None:
        self.left, self.error = calls, error

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


def on_each_cell(action: Callable[[], None]) -> StudyWatch:
    """A watch that does something once a cell is journalled."""
    return StudyWatch(on_cell=lambda folder, cell: action())


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A JSON-lines file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
