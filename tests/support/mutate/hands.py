"""Processes that try mutants: forked from one that has imported everything, each on a workbench of
its own. One that hangs or dies is ended, its mutant is named, and another goes on."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.mutate import workbench
from tests.support.mutate.kinds import mutant
from tests.support.mutate.verdict import Bench, Verdict, deepest

__all__ = ["SECONDS", "tried"]

SECONDS = 20.0
"""A mutant that takes longer hangs."""
LAST = ".last"
"""Where a process writes what it was doing when it had to end."""
_BATCH = 400
"""Mutants of one process."""
_MEMORY = 6 << 30
"""Bytes of address space that a process may take beside what it begins with."""


def import_ours() -> None:
    """Every module of deltalens, and what its commands print with."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401
    import torch
    import typer.testing  # noqa: F401

    import deltalens

    torch.set_num_threads(1)
    for found in pkgutil.walk_packages(deltalens.__path__, "deltalens."):
        importlib.import_module(found.name)
    for name in ("cli", "figures"):
        package = importlib.import_module(f"deltalens.{name}")
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)


def build(folder: Path) -> None:
    """The sound workbench, in a process of its own: this one keeps no threads. What that one has
    imported is imported here, too, so that no process imports it again."""
    folder.mkdir()
    known = folder.with_name("modules")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _settle(folder.parent)
            workbench.build(folder)
            known.write_text("\n".join(sys.modules))
            code = 0
        except BaseException:
            known.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"the workbench cannot be built: {known.read_text()}")
    for name in known.read_text().splitlines():
        if name not in sys.modules:
            with suppress(Exception):
                importlib.import_module(name)


def tried(numbers: Sequence[int], folder: Path, seed: int, jobs: int) -> Iterator[Verdict]:
    """Try these mutants.

    Args:
        numbers: of the mutants.
        folder: to work in; `sound` in it is the workbench.
        seed: of all mutants.
        jobs: processes at once.

    Yields:
        Verdicts, in no order.
    """
    gc.freeze()
    left = [list(numbers[start : start + _BATCH]) for start in range(0, len(numbers), _BATCH)]
    left.reverse()
    running: dict[int, _Hand] = {}
    free = list(range(jobs))
    while left or running:
        while left and free:
            hand = _Hand(folder, free.pop(), seed, left.pop())
            running[hand.pipe] = hand
        ready, _, _ = select.select(list(running), [], [], 0.5)
        for hand in list(running.values()):
            if hand.pipe in ready:
                yield from hand.heard()
            if hand.done or hand.hangs():
                yield from hand.ended()
                del running[hand.pipe]
                free.append(hand.place)
                if hand.left:
                    left.append(hand.left)


class _Hand:
    """One process."""

    def __init__(self, folder: Path, place: int, seed: int, numbers: list[int]) -> None:
        self.place, self.left, self.seed, self.done = place, numbers, seed, False
        self.bench = folder / f"bench-{place}"
        shutil.rmtree(self.bench, ignore_errors=True)
        shutil.copytree(folder / "sound", self.bench, symlinks=True)
        self.pipe, outlet = os.pipe()
        self._text = b""
        self._begun = "?", "?"
        self.process = os.fork()
        if self.process == 0:
            os.close(self.pipe)
            _work(folder, self.bench, seed, numbers, outlet)
        os.close(outlet)
        self._starts()

    def _starts(self) -> None:
        """It begins with a mutant."""
        self._since = time.monotonic()
        self._looked = False, -1.0
        self._began_at = self._spent()[1]

    def heard(self) -> Iterator[Verdict]:
        """What it found since."""
        text = os.read(self.pipe, 1 << 20)
        self.done = not text
        *lines, self._text = (self._text + text).split(b"\n")
        for line in lines:
            self._starts()
            found = json.loads(line)
            if isinstance(found, list):
                self._begun = found[0], found[1]
            else:
                self.left.pop(0)
                yield Verdict(**found)

    def hangs(self) -> bool:
        """Whether it has been busy with one mutant for too long, or idle as long: where many share
        the machine, it may be that it had no turn."""
        if time.monotonic() - self._since < SECONDS:
            return False
        before = self._looked
        self._looked = asleep, spent = self._spent()
        return spent - self._began_at > SECONDS or (asleep and spent == before[1])

    def _spent(self) -> tuple[bool, float]:
        """Whether it sleeps, and its seconds of processor time."""
        stat = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return stat[0] == "S", sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK")

    def ended(self) -> Iterator[Verdict]:
        """It is over: all is tried, or the mutant at hand hangs, or was the end of it."""
        hangs = not self.done
        if hangs:
            os.kill(self.process, signal.SIGKILL)
        status = os.waitpid(self.process, 0)[1]
        os.close(self.pipe)
        if self.left:
            number = self.left.pop(0)
            found = f"takes longer than {SECONDS:.0f} s" if hangs else _how(status)
            one = mutant(self.seed, number)
            trace = self.bench.with_suffix(LAST).read_text()
            where, said = deepest(trace), trace[-1000:]
            yield Verdict(
                number, one.kind.name, one.operation.name, *self._begun, found, where, said
            )


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exits with {os.WEXITSTATUS(status)}"


def _work(folder: Path, bench: Path, seed: int, numbers: Sequence[int], outlet: int) -> None:
    """In the process: try one after the other."""
    try:
        _settle(folder)
        os.chdir(bench)
        room = Bench(folder / "sound")
        with bench.with_suffix(LAST).open("w") as last:
            faulthandler.enable(last)
            for number in numbers:
                one = mutant(seed, number)
                file, damage = room.damage(one)
                os.write(outlet, json.dumps([str(file), damage]).encode() + b"\n")
                faulthandler.dump_traceback_later(0.9 * SECONDS, file=last)
                found = room.verdict(one, file, damage)
                faulthandler.cancel_dump_traceback_later()
                os.write(outlet, json.dumps(found.as_json()).encode() + b"\n")
    except BaseException:
        bench.with_suffix(LAST).write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _settle(folder: Path) -> None:
    """No words, no more threads or memory than needed, and "y" to whatever asks."""
    import tempfile

    from deltalens.cli.console import quieten
    from deltalens.figures import style

    yes = folder / "yes"
    yes.write_text("y\n" * 1000)
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        target = yes if number == 0 else Path(os.devnull)
        os.dup2(os.open(target, flags), number)
    warnings.simplefilter("ignore")
    quieten()
    # A crash of the machine is no part of this, and a picture's size changes no record.
    os.fsync = lambda descriptor: None
    style.SETTINGS["savefig.dpi"] = 20
    tempfile.tempdir = "."
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    signal.signal(signal.SIGINT, signal.default_int_handler)
