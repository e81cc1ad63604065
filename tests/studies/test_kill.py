"""A study may be killed at any moment, or stopped with Ctrl-C; the same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.checkpoint_pairs import Pair, PairOf
from tests.support.killing.forked import finish, start
from tests.support.runs import journal, settings, table

pytestmark = pytest.mark.resume

FEW, MANY = "0:1:0.2", "0:1:0.02"
CELLS = 5 * 6


@pytest.fixture(scope="module")
def pair(pair_of: PairOf) -> Pair:
    found: Pair = pair_of(family="llama")
    return found


def study(pair: Pair, out: Path, rates: str = FEW) -> list[str]:
    spec = ["--rates", rates, "--fidelity-tokens", "6"]
    return ["drop-study", str(pair.ft), str(pair.base), "-o", str(out), *spec]


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A study that nobody disturbed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("whole")
    finish(["--version"], folder / "computed")
    return folder / "study", finish(study(pair, folder / "study"), folder / "computed")


def kill_and_go_on(pair: Pair, folder: Path, rates: str, cells: int, after: float) -> int:
    """Kill a study so many seconds after so many cells, give the same command again; how many cells
    had been finished."""
    out = folder / "study"
    process = start(study(pair, out, rates), folder / "first")
    while process.is_alive() and len(_whole_lines(out)) < cells:
        time.sleep(0.002)
    process.join(after)
    process.kill()
    process.join()
    finished = set(_whole_lines(out))
    finish(study(pair, out, rates), folder / "second")
    again = _lines(folder / "second")
    assert finished.isdisjoint(again), "a journalled cell was computed once more"
    assert len(again) == len(set(again))
    return len(finished)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _whole_lines(out: Path) -> list[str]:
    file = out / "cells.jsonl"
    if not file.exists():
        return []
    raw = file.read_bytes()
    lines = raw[: raw.rfind(b"\n") + 1].splitlines()
    return [json.dumps(json.loads(line)["setting"]) for line in lines]


def kills(
    pair: Pair, whole: tuple[Path, float], folder: Path, count: int, rates: str = FEW
) -> list[int]:
    """Kill at so many random moments: every other one counted from the start of the process, which
    takes most of its time to load, the others from a cell of the study."""
    moments = random.Random(count)
    cells = len(settings(whole[0]))
    finished = []
    for place in range(count):
        begun = moments.randrange(cells) if place % 2 else 0
        after = moments.random() * (whole[1] / cells if begun else whole[1])
        (folder / str(place)).mkdir()
        finished.append(kill_and_go_on(pair, folder / str(place), rates, begun, after))
        out = folder / str(place) / "study"
        assert table(out) == table(whole[0]), f"killed {after:.2f} s after {begun} cells"
        assert settings(out) == settings(whole[0])
        assert len(set(settings(out))) == len(settings(out))
    return finished


def test_study_killed_at_3_random_moments_ends_as_if_it_had_not_been(
    pair: Pair, whole: tuple[Path, float], tmp_path: Path
) -> None:
    finished = kills(pair, whole, tmp_path, 3)
    print(f"cells finished when killed: {finished}")


@pytest.mark.slow
def test_study_killed_at_20_random_moments_ends_as_if_it_had_not_been(
    pair: Pair, whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "many"
    many = out, finish(study(pair, out, MANY), tmp_path / "computed")
    finished = kills(pair, many, tmp_path, 20, MANY)
    print(f"cells finished when killed: {finished}")
    assert sum(0 < cells < len(settings(out)) for cells in finished) >= 5, finished


def test_study_killed_again_and_again_ends_as_if_it_had_not_been(
    pair: Pair, whole: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    for cells in (1, 10, 20):
        process = start(study(pair, out), tmp_path / "computed")
        while process.is_alive() and len(_whole_lines(out)) < cells:
            time.sleep(0.005)
        process.kill()
        process.join()
        assert cells <= len(_whole_lines(out)) < CELLS
    finish(study(pair, out), tmp_path / "computed")
    assert table(out) == table(whole[0])
    assert len(_lines(tmp_path / "computed")) <= len(set(_lines(tmp_path / "computed"))) + 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    pair: Pair, whole: tuple[Path, float], tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "study"
    process = start(study(pair, out), tmp_path / "first", tmp_path / "said")
    while process.is_alive() and len(_whole_lines(out)) < 3:
        time.sleep(0.005)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "said").read_text().strip() == (
        f"deltalens: stopped; finished cells are kept in {out}, the same command goes on"
    )
    kept = _whole_lines(out)
    assert 3 <= len(kept) < CELLS
    assert len(table(out).splitlines()) == 1 + 2 * len(kept)
    finish(study(pair, out), tmp_path / "second")
    assert set(kept).isdisjoint(_lines(tmp_path / "second"))
    assert table(out) == table(whole[0])
    assert len(journal(out)) == CELLS


@pytest.mark.slow
def test_ctrl_c_stops_the_program_itself(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "study"
    process = subprocess.Popen(
        [Path(sys.executable).parent / "deltalens", *study(pair, out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and len(_whole_lines(out)) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed) == (130, "")
    assert f"stopped; finished cells are kept in {out}" in said
    assert "Traceback" not in said
