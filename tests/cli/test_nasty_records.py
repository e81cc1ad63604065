"""Studies and runs that somebody sent, with nasty words wherever they may stand: what is drawn,
written and printed of them obeys nothing."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deltalens
from deltalens.cli import console, monitor
from deltalens.errors import DeltaLensError
from deltalens.io.checksum import CHECKSUM, sealed
from deltalens.io.records import load_study
from tests.cli.test_nasty_commands import Made, is_clean, made
from tests.support.edits import edit
from tests.support.finished_studies import KINDS, make_study, said_of
from tests.support.nasty import FORMULA, NAME, faults_of, obeyed
from tests.support.runs import command

pytestmark = pytest.mark.bad_input

__all__ = ["made"]


def words(value: Any) -> Iterator[str]:
    """All that is text in a JSON value, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, held in value.items():
            yield name
            yield from words(held)
    elif isinstance(value, list):
        for held in value:
            yield from words(held)


def replaced(value: Any, old: str, new: str) -> Any:
    """The value with another word everywhere."""
    if isinstance(value, str):
        return new if value == old else value
    if isinstance(value, dict):
        return {replaced(n, old, new): replaced(held, old, new) for n, held in value.items()}
    if isinstance(value, list):
        return [replaced(held, old, new) for held in value]
    return value


def spoil(folder: Path, kind: str) -> list[str]:
    """Put a nasty word in the place of each that a study may have another one of; which."""
    files = [folder / "study.json", folder / "cells.jsonl"]
    study, *cells = (json.loads(line) for line in [files[0].read_bytes(), *lines(files[1])])
    kept = {study["asked"]["kind"], CHECKSUM, *study, *study["asked"], *study["columns"]}
    kept |= {*cells[0], *study["facts"], "overall", "layer"}
    found = []
    for place, old in enumerate(dict.fromkeys(words([study, cells]))):
        if old in kept:
            continue
        new = f"{FORMULA if place % 4 == 0 else NAME}{place}"
        before = [file.read_bytes() for file in files]
        changed = replaced([study, *cells], old, new)
        files[0].write_text(json.dumps(sealed(changed[0])))
        files[1].write_text("".join(json.dumps(sealed(one)) + "\n" for one in changed[1:]))
        try:
            said_of(load_study(folder), kind)
        except DeltaLensError:
            for file, raw in zip(files, before, strict=True):
                file.write_bytes(raw)
            continue
        study, *cells = changed
        found.append(old)
    return found


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines()


def show(folder: Path) -> None:
    """Print what a command says of a study."""
    console.show(load_study(folder), [], as_json=False, quiet=False)


@pytest.mark.filterwarnings("ignore:.*does not match the journal")
@pytest.mark.parametrize("kind", KINDS)
def test_a_received_study_is_shown_and_obeyed_in_nothing(
    tmp_path: Path, kind: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = make_study(tmp_path / f"study{NAME}", kind)
    (folder / "cells.csv").unlink(missing_ok=True)
    assert len(spoil(folder, kind)) >= 2
    result = command("plot", folder)
    # Of a metric that nobody knows a table may not know which way is better.
    is_clean(result, result.exit_code and 2)
    assert faults_of(folder) == []
    assert [*folder.glob("*.svg")]
    if kind != "inspect":
        capsysbinary.readouterr()
        show(folder)
        shown = capsysbinary.readouterr().out
        assert obeyed(shown) == []
        assert rb"\x1b]52" in shown or kind == "efficiency"  # Which shows no name.


def test_a_study_that_somebody_sent_is_compared_without_obeying_it(made: Made) -> None:
    folder = make_study(made.out / "received", "drop-study")
    edit(folder / "study.json", lambda study: study["asked"].update(ft=NAME, strategies=[NAME]))
    result = command(*made.line("drop-study")[:-1], folder)
    is_clean(result, 2)
    assert r"\x1b]52" in result.stderr


class Named(torch.nn.Module):
    """A model whose parameters are called so."""

    def __init__(self) -> None:
        super().__init__()
        for name in (NAME, FORMULA):
            self.add_module(name, torch.nn.Linear(4, 4))

    def forward(self, held: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            held = layer(held)
        return held


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of a training, with a gradient that is not finite."""
    folder, model = tmp_path / f"run{NAME}", Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with deltalens.GradientProbe(model, folder, every=1, updates=True):
        for step in range(3):
            model(torch.full((2, 4), math.nan if step == 1 else 1.0)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return folder


def test_a_run_is_shown_and_obeyed_in_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = command("monitor", run)
    is_clean(shown)
    assert r"\x1b]52" in shown.stdout
    assert faults_of(run) == []
    json.loads(command("monitor", run, "--json").stdout)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor.time, "sleep", interrupted)
    is_clean(command("monitor", run, "--follow", "--no-pictures"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_names_and_obeys_none(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = []
    for name in ("name", NAME):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("COLUMNS", "2000")
        with console.meter(quiet=False) as meter:
            meter.stage(name, 2)
            meter.say(name)
            meter.advance(1)
        printed.append(sys.stderr.getvalue())  # type: ignore[attr-defined]
    ours = {*re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", printed[0])}
    assert {*re.findall(r"\x1b\[[0-9;?]*[A-Za-z]", printed[1])} == ours
    for bar in printed:
        left = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", bar)
        assert obeyed(left.encode()) == []
    assert "[bold]" in printed[1]


def test_a_metric_of_a_callers_own_is_shown_and_obeyed_in_nothing(made: Made) -> None:
    out = made.out / "custom"
    deltalens.drop_study(
        made.ft,
        made.base,
        out,
        rates="0.5",
        seeds=1,
        metric=lambda model: {NAME: 1.0, FORMULA: 2.0, "@SUM(1)": 3.0},
    )
    is_clean(command("plot", out))
    assert faults_of(out) == []
