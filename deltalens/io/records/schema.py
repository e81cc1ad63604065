"""What a value read from a record has to be: types and bounds, said once and checked at the door.

A `Check` says what it wants in words (`str`) and yields a fault for each place that is otherwise:
where it is, what is there, and what should be. Fields that nothing of ours reads pass unseen: a
later version may write more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from deltalens.errors import RecordError

__all__ = [
    "COUNT",
    "FLAG",
    "NAME",
    "NOTHING",
    "Check",
    "Either",
    "Fields",
    "Items",
    "Named",
    "Real",
    "Row",
    "Text",
    "Whole",
    "refuse",
    "require",
]

_LONGEST = 60


class Check(Protocol):
    """Says whether a value is what it should be; `str` of it says what that is."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """What is wrong with a value at a place, in words."""
        ...


def _wrong(value: Any, at: str, wanted: Check) -> str:
    return f"{at} is {_short(json.dumps(value, ensure_ascii=False))}, where {wanted} should be"


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    least: int = 0
    most: int = (1 << 63) - 1

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if type(value) is not int or not self.least <= value <= self.most:
            yield _wrong(value, at, self)

    def __str__(self) -> str:
        least = f" from {self.least:,}" if self.least > -(1 << 63) else ""
        most = f" to {self.most:,}" if self.most < (1 << 63) - 1 else ""
        return f"a whole number{least}{most}"


@dataclass(frozen=True)
class Real:
    """A finite number."""

    least: float = -1e300
    most: float = 1e300

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if type(value) not in (int, float) or not self.least <= value <= self.most:
            yield _wrong(value, at, self)

    def __str__(self) -> str:
        bounds = (self.least, self.most)
        return "a finite number" + (
            f" from {bounds[0]:g} to {bounds[1]:g}" if self != Real() else ""
        )


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if type(value) is not bool:
            yield _wrong(value, at, self)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Nothing:
    """Null."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if value is not None:
            yield _wrong(value, at, self)

    def __str__(self) -> str:
        return "null"


@dataclass(frozen=True)
class Text:
    """A text of some form."""

    longest: int = 100_000
    among: tuple[str, ...] = ()
    """The ones that it may be; any, if none are named."""
    form: str = ""
    """A regular expression for the whole of it."""
    example: str = ""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if (
            type(value) is not str
            or len(value) > self.longest
            or (self.among and value not in self.among)
            or (self.form and not re.fullmatch(self.form, value))
        ):
            yield _wrong(value, at, self)

    def __str__(self) -> str:
        if self.among:
            return f"one of {', '.join(self.among)}"
        if self.example:
            return f"a text such as {self.example!r}"
        return f"a text of at most {self.longest:,} characters"


FLAG, NOTHING, COUNT = Flag(), Nothing(), Whole()
NAME = Text(1_000)
"""Of a file, a model, a tensor, a method, a metric."""


@dataclass(frozen=True)
class Items:
    """A list."""

    of: Check
    least: int = 0
    most: int = 10_000_000

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            yield _wrong(value, at, self)
            return
        for place, item in enumerate(value):
            yield from self.of.faults(item, f"{at}[{place}]")

    def __str__(self) -> str:
        at_least = f"{self.least} or more " if self.least else ""
        return f"a list of {at_least}items, each {self.of}"


@dataclass(frozen=True)
class Row:
    """A list of so many values, each of its own kind."""

    of: tuple[Check, ...]

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if not isinstance(value, list) or len(value) != len(self.of):
            yield _wrong(value, at, self)
            return
        for place, (item, check) in enumerate(zip(value, self.of, strict=True)):
            yield from check.faults(item, f"{at}[{place}]")

    def __str__(self) -> str:
        return f"a list of {len(self.of)}: {', '.join(map(str, self.of))}"


@dataclass(frozen=True)
class Named:
    """An object of values of one kind, by any names."""

    of: Check
    names: Check = NAME

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if not isinstance(value, dict):
            yield _wrong(value, at, self)
            return
        for name, item in value.items():
            yield from self.names.faults(name, f"a name in {at}")
            yield from self.of.faults(item, f"{at}.{_short(name)}")

    def __str__(self) -> str:
        return f"an object whose values are each {self.of}"


@dataclass(frozen=True)
class Fields:
    """An object with fields of known names."""

    needed: Mapping[str, Check] = field(default_factory=dict)
    known: Mapping[str, Check] = field(default_factory=dict)
    """May be left out."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        if not isinstance(value, dict):
            yield _wrong(value, at, self)
            return
        prefix = f"{at}." if at else ""
        for name, check in self.needed.items():
            if name not in value:
                yield f"{prefix}{name} is missing, where {check} should be"
        for name, check in {**self.needed, **self.known}.items():
            if name in value:
                yield from check.faults(value[name], f"{prefix}{name}")

    def __str__(self) -> str:
        return f"an object with {', '.join(self.needed)}" if self.needed else "an object"


@dataclass(frozen=True)
class Either:
    """A value of one kind or another."""

    of: tuple[Check, ...]

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """See `Check`."""
        found = [[*check.faults(value, at)] for check in self.of]
        if all(found):
            # Where one kind fits but for a part of it, that part is what is wrong.
            inner = [faults for faults in found if not faults[0].startswith(f"{at} is ")]
            yield from inner[0] if inner else [_wrong(value, at, self)]

    def __str__(self) -> str:
        return " or ".join(map(str, self.of))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def require(
    where: str | Path, value: Any, checks: Mapping[str, Check] | Check, hint: str = ""
) -> None:
    """Refuse a value that is not what it should be.

    Args:
        where: it stands, for the message.
        value: as it was read.
        checks: what it should be; a mapping: an object with these fields.
        hint: what to do.

    Raises:
        RecordError: names the field, what is there and what should be; further faults are counted.
    """
    check = Fields(checks) if isinstance(checks, Mapping) else checks
    refuse(where, [*check.faults(value, "")], hint)


def refuse(where: str | Path, faults: Sequence[str], hint: str = "") -> None:
    """Refuse a record if there is a fault in it.

    Raises:
        RecordError: with the first; further ones are counted.
    """
    if not faults:
        return
    more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
    raise RecordError(f"{where}: {faults[0].strip()}{more}{f'; {hint}' if hint else ''}")
