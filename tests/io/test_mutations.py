"""Damaged files by the thousand: refused with one message, or harmless. None hangs, none crashes,
none leaves a trace, and no number of another file is taken for this one's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltalens import DeltaLensError
from tests.support.mutate import hands
from tests.support.mutate.kinds import KINDS, QUICK, Kind, Mutant, Operation, mutant
from tests.support.mutate.operations import Seen
from tests.support.mutate.verdict import Bench

pytestmark = pytest.mark.bad_input

ROOT = Path(__file__).parents[2]
ALL, RESUMED = 25_000, 500


def mutated(tmp_path: Path, count: int, jobs: int) -> list[dict[str, Any]]:
    """Try so many mutants in a process of its own; every verdict."""
    out = tmp_path / "verdicts.jsonl"
    spec = ["--count", str(count), "--jobs", str(jobs), "--json", str(out), "--quiet"]
    made = subprocess.run(
        [sys.executable, "-m", "tests.support.mutate", *spec],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(made.stdout)
    assert out.exists(), made.stderr
    assert made.returncode == 0, made.stdout
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.timeout(900)
def test_two_thousand_damaged_files_are_refused_or_harmless(tmp_path: Path) -> None:
    found = Counter(one["found"] for one in mutated(tmp_path, QUICK, 1))
    assert found["refused"] > 0.3 * QUICK
    assert found["accepted"] > 0.1 * QUICK


@pytest.mark.mutate
@pytest.mark.timeout(2 * 3600)
def test_damaged_files_of_every_kind_are_refused_or_harmless(tmp_path: Path) -> None:
    verdicts = mutated(tmp_path, ALL, 2)
    assert {one["kind"] for one in verdicts} == {kind.name for kind in KINDS}
    assert sum(one["resumed"] for one in verdicts) >= RESUMED


def behavior(run: Callable[[Path], Seen], own: bool = True) -> Callable[[int, int], Mutant]:
    """Mutants of which nothing but this is done."""
    kind = Kind("record", ("record.json",), (Operation(run, makes=("*",)),), 1, own, replaced=0)

    def made(seed: int, number: int) -> Mutant:
        return Mutant(number, kind, kind.operations[0], mutant(seed, number).draw)

    return made


def value() -> float:
    return float(json.loads(Path("record.json").read_text())["value"])


def refusing(file: Path) -> Seen:
    try:
        return Seen(None, {"value": value()}) if value() == 1.0 else Seen(None, {"value": 0})
    except (ValueError, KeyError, TypeError) as error:
        raise DeltaLensError(f"{file}: not a record") from error


def trusting(file: Path) -> Seen:
    try:
        return Seen(None, {"value": value()})
    except (ValueError, KeyError, TypeError) as error:
        raise DeltaLensError(f"{file}: not a record") from error


def sampling(file: Path) -> Seen:
    """Its fingerprint is that of the file's end."""
    raw = file.read_bytes()
    return Seen(raw[-1:], {"bytes": raw})


def untidy(file: Path) -> Seen:
    Path(".record.part").touch()
    raise DeltaLensError("the disk is full, and so on")


def leaving(file: Path) -> Seen:
    Path(".record.json.0123abcd-7-89ab.part").touch()
    return Seen(None, {})


def careless(file: Path) -> Seen:
    return Seen(None, {"value": json.loads(file.read_text())["nowhere"]})


def busy(file: Path) -> Seen:
    while True:
        pass


def waiting(file: Path) -> Seen:
    time.sleep(1000)
    return Seen(None, {})


def crashing(file: Path) -> Seen:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Seen(None, {})


def quiet(file: Path) -> Seen:
    raise DeltaLensError("no")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sound = tmp_path / "sound"
    sound.mkdir()
    (sound / "record.json").write_text('{"name": "loss", "value": 1.0, "n": 4}\n')
    return tmp_path


@pytest.mark.parametrize(
    ("run", "found", "own"),
    [
        (trusting, "wrong number", True),
        (sampling, "wrong number", False),
        (untidy, "left or changed", True),
        (leaving, "left or changed", True),
        (careless, "builtins.KeyError", True),
        (busy, "takes longer than 1 s", True),
        (waiting, "takes longer than 1 s", True),
        (crashing, "killed by SIGSEGV", True),
        (quiet, "message too short or too long", True),
    ],
)
def test_every_kind_of_misbehavior_is_noticed(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[Path], Seen],
    found: str,
    own: bool,
) -> None:
    monkeypatch.setattr(hands, "mutant", behavior(run, own))
    monkeypatch.setattr(hands, "SECONDS", 1.0)
    count = 3 if run in (busy, waiting) else 40
    verdicts = list(hands.tried(range(count), folder, 0, 1))
    assert sorted(one.number for one in verdicts) == list(range(count))
    assert found in {one.found for one in verdicts}, verdicts[0].said


def test_what_refuses_damage_is_found_sound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(file: Path) -> Seen:
        if file.read_bytes() != (folder / "sound" / "record.json").read_bytes():
            raise DeltaLensError(f"{file}: damaged")
        return Seen(None, {"value": 1.0})

    monkeypatch.setattr(hands, "mutant", behavior(checked))
    verdicts = list(hands.tried(range(40), folder, 0, 2))
    assert all(one.sound for one in verdicts)
    assert Counter(one.found for one in verdicts)["refused"] > 30


def test_a_number_makes_the_same_mutant_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "sound")
    made = behavior(refusing)

    def damage(number: int) -> bytes:
        sound = Path("record.json").read_bytes()
        Bench(folder / "sound").damage(made(0, number))
        raw = Path("record.json").read_bytes()
        Path("record.json").write_bytes(sound)
        return raw

    once = [damage(number) for number in range(30)]
    assert once == [damage(number) for number in range(30)]
    assert len(set(once)) > 20
