"""Every command that writes may be killed, or asked to stop, at any moment: the same command goes
on, and ends as if it had not been. Nothing is left of the first try, and nothing is half-made."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.killing.commands import (
    COMMANDS,
    OUT,
    Command,
    Inputs,
    left_in,
    stale_in,
    write_inputs,
)
from tests.support.killing.killed import Ended, Moment, run

pytestmark = pytest.mark.resume

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGKILL)
STOPPED = 130
BY_NAME = {command.name: command for command in COMMANDS}


@dataclass(frozen=True)
class Straight:
    """What a command comes to that nobody disturbs."""

    work: Path
    ended: Ended


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def straight(
    inputs: Inputs, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Command], Straight]:
    made: dict[str, Straight] = {}

    def give(command: Command) -> Straight:
        if command.name not in made:
            folder = tmp_path_factory.mktemp("straight")
            work = ready(command, folder / "work")
            ended = run(command.call(inputs, work), work, folder / "log")
            assert ended.code == 0, ended.said
            made[command.name] = Straight(work, ended)
        return made[command.name]

    def ready(command: Command, work: Path) -> Path:
        work.mkdir()
        if command.prepare is not None:
            source = give(BY_NAME[command.prepare]).work / OUT
            copy_without_pictures(source / "run" if command.name == "monitor" else source, work)
        return work

    return give


def copy_without_pictures(source: Path, work: Path) -> None:
    shutil.copytree(source, work / OUT, ignore=shutil.ignore_patterns("*.png", "*.svg"))


def phase_of(write: tuple[str, str], before: Sequence[tuple[str, str]]) -> str:
    """In which part of a training something is written."""
    kind, name = write
    if ".model" in name:
        return "moving" if kind == "rename" else "the model"
    if "checkpoint-" in name and kind in ("open", "os.mkdir", "fsync"):
        return "a checkpoint"
    if any(".model" in one for _, one in before):
        return "after the last checkpoint"
    if any("metrics.jsonl" in one for _, one in before):
        return "between steps"
    return "before the first step"


def moments(command: Command, whole: Straight, count: int) -> list[Moment]:
    """Writes spread over the command, or over each phase of a training in turn; and every fourth
    time any moment."""
    draw = random.Random(command.name)
    writes = whole.ended.writes
    numbers = range(1, len(writes) + 1)
    by_phase: dict[str, list[int]] = {}
    for number in numbers:
        part = number * 4 // (len(writes) + 1)
        phase = phase_of(writes[number - 1], writes[: number - 1]) if command.phases else str(part)
        by_phase.setdefault(phase, []).append(number)
    phases = [*by_phase.values()]
    found = []
    for place in range(count):
        number = SIGNALS[place % len(SIGNALS)]
        if place % 4 == 3:
            found.append(Moment(number, seconds=draw.random() * whole.ended.seconds))
        else:
            turn = place - place // 4
            found.append(Moment(number, write=draw.choice(phases[turn % len(phases)])))
    return found


def killed_and_again(
    command: Command, inputs: Inputs, whole: Straight, folder: Path, moment: Moment
) -> bool:
    """Kill a command, give it again, and look at what it came to; whether it was killed."""
    work = folder / "work"
    work.mkdir(parents=True)
    if command.prepare is not None:
        copy_without_pictures(whole.work / OUT, work)
    call = command.call(inputs, work)
    first = run(call, work, folder / "first", moment)
    what = f"{command.name}, {moment}: exit code {first.code}, {first.said}"
    if moment.number == signal.SIGKILL or moment.write is None:
        assert first.code in (0, -moment.number, STOPPED), what
    else:
        # It has begun, and hears that it is asked to stop.
        assert first.code in (0, STOPPED), what
    assert "Traceback" not in first.said, what
    began = (work / OUT).exists()
    again = run([*call, *(command.resume if began else ())], work, folder / "again")
    what += f"; then {again.code}, {again.said}"
    done = command.done and command.done in again.said and again.code == 2
    assert again.code == 0 or done, what
    assert "Traceback" not in again.said, what
    assert command.came_to(work / OUT) == command.came_to(whole.work / OUT), what
    assert not stale_in(work), what
    assert left_in(work) == left_in(whole.work), what
    shutil.rmtree(folder)
    return first.code != 0


def kills(
    command: Command,
    inputs: Inputs,
    whole: Straight,
    folder: Path,
    chosen: Sequence[Moment],
) -> str:
    """Kill a command at all these moments; the line that says how that went."""
    count = [
        killed_and_again(command, inputs, whole, folder / str(place), moment)
        for place, moment in enumerate(chosen)
    ]
    by_signal = {one: sum(m.number == one for m in chosen) for one in dict.fromkeys(SIGNALS)}
    signals = ", ".join(f"{n} {signal.Signals(one).name}" for one, n in by_signal.items())
    return (
        f"{command.name}: {len(chosen)} kills ({signals}), {sum(count)} before its end, "
        f"{len(count)} resumed, {len(count)} identical; {len(whole.ended.writes)} writes, "
        f"{whole.ended.seconds:.1f} s each"
    )


@pytest.mark.kill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_killed_at_any_moment_it_comes_to_the_same(
    command: Command,
    inputs: Inputs,
    straight: Callable[[Command], Straight],
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
) -> None:
    whole = straight(command)
    chosen = moments(command, whole, command.kills)
    if command.phases:
        writes = whole.ended.writes
        hit = {phase_of(writes[m.write - 1], writes[: m.write - 1]) for m in chosen if m.write}
        assert hit == {*command.phases}
    record_property("kills", kills(command, inputs, whole, tmp_path, chosen))


def test_a_training_killed_while_its_model_is_moved_or_a_checkpoint_is_written(
    inputs: Inputs, straight: Callable[[Command], Straight], tmp_path: Path
) -> None:
    command = BY_NAME["train sft"]
    whole = straight(command)
    writes = whole.ended.writes
    phases = [phase_of(write, writes[:place]) for place, write in enumerate(writes)]
    chosen = [
        Moment(signal.SIGKILL, write=2 + phases.index("moving")),
        Moment(signal.SIGHUP, write=1 + phases.index("a checkpoint")),
    ]
    print(kills(command, inputs, whole, tmp_path, chosen))
