"""One mutant: the damage, what was done with it, and how it was taken."""

from __future__ import annotations

import os
import re
import shutil
import time
import traceback
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError
from deltalens.io.temporary import is_temporary
from tests.support.mutate.damage import damaged, remove, replace_file
from tests.support.mutate.kinds import Kind, Mutant
from tests.support.mutate.operations import Refused, Seen, Unsound

__all__ = ["Bench", "Verdict"]

UNTOUCHED = 0.005
"""So many mutants are none, and have to be accepted: that is what the others are measured by."""

State = dict[str, tuple[Any, ...]]
_OURS = ("deltalens", "cli", "figures")
_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Verdict:
    """How one mutant was taken."""

    number: int
    kind: str
    operation: str
    file: str
    damage: str
    found: str
    """`accepted`, `refused`, or of what kind the fault is."""
    where: str = ""
    """Of a fault: the innermost frame of ours, and the innermost of all."""
    said: str = ""
    """The message."""
    resumed: bool = False
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """No fault."""
        return self.found in ("accepted", "refused")

    def as_json(self) -> dict[str, Any]:
        """For the process that collects."""
        return asdict(self)


class Bench:
    """A copy of the workbench that mutants are tried on, one after the other; the process is in it.

    Args:
        sound: the workbench that is never touched.
    """

    def __init__(self, sound: Path) -> None:
        self._sound = sound
        self._clean: dict[tuple[str, str], Seen] = {}
        self._state = state()
        self._files: dict[str, list[Path]] = {}

    def damage(self, mutant: Mutant) -> tuple[Path, str]:
        """Damage a file; which one, and how."""
        files = self._files.setdefault(mutant.kind.name, files_of(mutant.kind))
        file = mutant.draw.choice(files)
        mutant.operation.first(file)
        chance = mutant.draw.random()
        if chance < mutant.kind.replaced:
            return file, f"replaced by {replace_file(mutant.draw, file)}"
        if chance < mutant.kind.replaced + UNTOUCHED:
            return file, "untouched"
        others = [one.read_bytes() for one in files if one.suffix == file.suffix]
        file.write_bytes(damaged(mutant.draw, file, others, mutant.kind.damage))
        return file, "damaged"

    def verdict(self, mutant: Mutant, file: Path, damage: str) -> Verdict:
        """Do with a damaged file what is to be done, and put all back."""
        before, begun = state(), time.perf_counter()
        seen: Seen | None = None
        error: BaseException | None = None
        try:
            seen = mutant.operation.run(file)
        except BaseException as raised:
            error = raised
        seconds = time.perf_counter() - begun
        found, where, said = self._judged(mutant, file, before, seen, error)
        if damage == "untouched" and found == "refused":
            found, where = "a sound file is refused", mutant.operation.name
        return Verdict(
            mutant.number,
            mutant.kind.name,
            mutant.operation.name,
            str(file),
            damage,
            found,
            where,
            said,
            seen is not None and seen.resumed,
            round(seconds, 4),
        )

    def _judged(
        self,
        mutant: Mutant,
        file: Path,
        before: State,
        seen: Seen | None,
        error: BaseException | None,
    ) -> tuple[str, str, str]:
        after = state()
        changed = [
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        ]
        self._restore(after)
        said = str(error) if error is not None else ""
        allowed = mutant.operation.makes if error is None else ()
        left = sorted(
            name
            for name in changed
            if is_temporary(Path(name).name) or not any(fnmatch(name, one) for one in allowed)
        )
        if error is not None and not isinstance(error, (DeltaLensError, Refused)):
            return _fault(error), frames(error), said[:500]
        if left:
            return "left or changed", ", ".join(_general(name) for name in left[:5]), said[:500]
        if seen is None:
            if not 10 < len(said) < 20_000:
                return "message too short or too long", f"{len(said)} characters", said[:200]
            return "refused", "", said[:500]
        wrong = self._compared(mutant, file, seen)
        return ("wrong number", wrong, "") if wrong else ("accepted", "", "")

    def _compared(self, mutant: Mutant, file: Path, seen: Seen) -> str:
        """What is wrong with what was seen of an accepted mutant, if anything is."""
        if not mutant.kind.own and seen.identity is None:
            return ""
        clean = self._clean_of(mutant, file)
        if mutant.kind.own:
            other = [name for name in seen.numbers if seen.numbers[name] != clean.numbers.get(name)]
            other = [n for n in other if repr(seen.numbers[n]) != repr(clean.numbers.get(n))]
            parts = sorted({name.split(" ")[0] for name in other})
            return f"not the clean {', '.join(parts[:3])}" if parts else ""
        same = repr(seen.identity) == repr(clean.identity)
        if same and repr(seen.numbers) != repr(clean.numbers):
            return "another number under the same identity"
        return ""

    def _clean_of(self, mutant: Mutant, file: Path) -> Seen:
        first = mutant.operation.first.__name__
        key = f"{mutant.operation.name} {first}", "/".join(file.parts[:2])
        if key not in self._clean:
            mutant.operation.first(file)
            self._clean[key] = mutant.operation.run(file)
            self._restore(state())
        return self._clean[key]

    def _restore(self, found: State) -> None:
        """All as it was, whatever was made, changed or removed."""
        other = {
            name
            for name in found.keys() | self._state.keys()
            if found.get(name) != self._state.get(name)
        }
        for name in sorted(other):
            if os.path.lexists(name):
                remove(Path(name))
        for name in sorted(other & self._state.keys()):
            source, target = self._sound / name, Path(name)
            if os.path.lexists(target):
                continue
            if source.is_dir():
                target.mkdir()
            else:
                shutil.copyfile(source, target)
        now = state()
        for name in other & now.keys():
            self._state[name] = now[name]


def state(root: str = ".") -> State:
    """Every file and folder of the workbench: enough to see that one was touched."""
    found: State = {}
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                name = entry.path.removeprefix("./")
                if entry.is_dir(follow_symlinks=False):
                    found[name] = ("folder",)
                    folders.append(entry.path)
                else:
                    found[name] = (info.st_mode, info.st_size, info.st_mtime_ns, info.st_ino)
    return found


def files_of(kind: Kind) -> list[Path]:
    """The files of a kind, in a fixed order."""
    found = {path for pattern in kind.files for path in Path().glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.stat().st_size)


def _fault(error: BaseException) -> str:
    return (
        str(error)
        if isinstance(error, Unsound)
        else f"{type(error).__module__}.{type(error).__name__}"
    )


def frames(error: BaseException) -> str:
    """Where an exception was raised: the innermost frame of ours, and of all."""
    trace = traceback.extract_tb(error.__traceback__)
    ours = [one for one in trace if _is_ours(one.filename)]
    shown: list[str] = []
    for one in [*ours[-1:], *trace[-1:]]:
        shown.append(f"{_short(one.filename)}:{one.lineno} {one.name}")
    return " > ".join(dict.fromkeys(shown))


def deepest(trace: str) -> str:
    """The innermost frame of ours, and of all, in what `faulthandler` wrote of the main thread."""
    main = trace.split("most recent call first")[-1]
    found = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', main)
    ours = [one for one in found if _is_ours(one[0])]
    shown = [f"{_short(name)}:{line} {function}" for name, line, function in ours[:1] + found[:1]]
    return " > ".join(dict.fromkeys(shown))


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(_ROOT)) if _is_ours(name) else "/".join(path.parts[-2:])


def _is_ours(name: str) -> bool:
    path = Path(name)
    return path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _OURS


def _general(name: str) -> str:
    """A name without what is only of this mutant."""
    return re.sub(r"[0-9a-f]{8}-\d+-[0-9a-f]+|\d+", "#", name)[:80]
