"""Checks of values that are read from records: their types and bounds.

A `Check` describes what it expects (`str`), and yields a fault for each part of a value that does
not comply: where the part is, what it is, and what was expected. Unknown fields are not checked: a
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
    """Checks a value; its `str` describes what it expects."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value.

        Args:
            value: the value, as it was read.
            at: where it is in the record: `facts.entries`.

        Yields:
            A phrase for each fault.
        """
        ...


def _fault(value: Any, at: str, expected: Check) -> str:
    return f"{at} is {_short(json.dumps(value, ensure_ascii=False))}; expected {expected}"


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    least: int = 0
    most: int = (1 << 63) - 1

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if type(value) is not int or not self.least <= value <= self.most:
            yield _fault(value, at, self)

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
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if type(value) not in (int, float) or not self.least <= value <= self.most:
            yield _fault(value, at, self)

    def __str__(self) -> str:
        bounds = (self.least, self.most)
        return "a finite number" + (
            f" from {bounds[0]:g} to {bounds[1]:g}" if self != Real() else ""
        )


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if type(value) is not bool:
            yield _fault(value, at, self)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Nothing:
    """Null."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if value is not None:
            yield _fault(value, at, self)

    def __str__(self) -> str:
        return "null"


@dataclass(frozen=True)
class Text:
    """A text of a certain form."""

    longest: int = 100_000
    """Largest number of characters."""
    among: tuple[str, ...] = ()
    """The texts allowed; (): any."""
    form: str = ""
    """A regular expression that the whole text must match; "": any text."""
    example: str = ""
    """An example of that form, for messages."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if (
            type(value) is not str
            or len(value) > self.longest
            or (self.among and value not in self.among)
            or (self.form and not re.fullmatch(self.form, value))
        ):
            yield _fault(value, at, self)

    def __str__(self) -> str:
        if self.among:
            return f"one of {', '.join(self.among)}"
        if self.example:
            return f"a text such as {self.example!r}"
        return f"a text of at most {self.longest:,} characters"


FLAG, NOTHING, COUNT = Flag(), Nothing(), Whole()
NAME = Text(1_000)
"""The name of a file, model, tensor, method or metric."""


@dataclass(frozen=True)
class Items:
    """A list."""

    of: Check
    least: int = 0
    most: int = 10_000_000

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            yield _fault(value, at, self)
            return
        for index, item in enumerate(value):
            yield from self.of.faults(item, f"{at}[{index}]")

    def __str__(self) -> str:
        at_least = f"{self.least} or more " if self.least else ""
        return f"a list of {at_least}items, each {self.of}"


@dataclass(frozen=True)
class Row:
    """A list of fixed length, each value with a check of its own."""

    of: tuple[Check, ...]

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if not isinstance(value, list) or len(value) != len(self.of):
            yield _fault(value, at, self)
            return
        for index, (item, check) in enumerate(zip(value, self.of, strict=True)):
            yield from check.faults(item, f"{at}[{index}]")

    def __str__(self) -> str:
        return f"a list of {len(self.of)}: {', '.join(map(str, self.of))}"


@dataclass(frozen=True)
class Named:
    """An object with arbitrary names and values of one kind."""

    of: Check
    names: Check = NAME

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if not isinstance(value, dict):
            yield _fault(value, at, self)
            return
        for name, item in value.items():
            yield from self.names.faults(name, f"a name in {at}")
            yield from self.of.faults(item, f"{at}.{_short(name)}")

    def __str__(self) -> str:
        return f"an object whose values are each {self.of}"


@dataclass(frozen=True)
class Fields:
    """An object with certain fields."""

    needed: Mapping[str, Check] = field(default_factory=dict)
    """Fields that must be present."""
    known: Mapping[str, Check] = field(default_factory=dict)
    """Fields that may be left out."""

    def faults(self, value: Any, at: str) -> Iterator[str]:
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        if not isinstance(value, dict):
            yield _fault(value, at, self)
            return
        prefix = f"{at}." if at else ""
        for name, check in self.needed.items():
            if name not in value:
                yield f"{prefix}{name} is missing; expected {check}"
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
        """Find what is wrong with a value; see `Check.faults`.

        Yields:
            A phrase for each fault.
        """
        by_kind = [[*check.faults(value, at)] for check in self.of]
        if all(by_kind):
            # If the value is of one kind except for a part of it, report only that part.
            inner = [faults for faults in by_kind if not faults[0].startswith(f"{at} is ")]
            yield from inner[0] if inner else [_fault(value, at, self)]

    def __str__(self) -> str:
        return " or ".join(map(str, self.of))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def require(
    where: str | Path, value: Any, checks: Mapping[str, Check] | Check, hint: str = ""
) -> None:
    """Refuse a value that does not comply with a check.

    Args:
        where: the file that the value comes from, for the message.
        value: the value, as it was read.
        checks: what is expected; a mapping stands for an object with these fields.
        hint: what to do about it, for the message.

    Raises:
        RecordError: names the field, its value and what was expected; further faults are counted.
    """
    check = Fields(checks) if isinstance(checks, Mapping) else checks
    refuse(where, [*check.faults(value, "")], hint)


def refuse(where: str | Path, faults: Sequence[str], hint: str = "") -> None:
    """Refuse a record that has faults.

    Args:
        where: the file that the record comes from, for the message.
        faults: what is wrong with it; none: it passes.
        hint: what to do about it, for the message.

    Raises:
        RecordError: states the first fault; further ones are counted.
    """
    if not faults:
        return
    more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
    raise RecordError(f"{where}: {faults[0].strip()}{more}{f'; {hint}' if hint else ''}")
