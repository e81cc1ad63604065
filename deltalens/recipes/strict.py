"""Mappings of a YAML file as dataclasses: unknown keys are refused, with the nearest known one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from deltalens.errors import similar_names

__all__ = ["Faults", "is_scalar", "read_as", "read_by", "read_named", "values_of"]

T = TypeVar("T")


class Faults(list[str]):
    """What is wrong with a file, a line each."""

    def at(self, where: str, message: str) -> None:
        """Note a fault.

        Args:
            where: the keys that lead to it.
            message: what is wrong.
        """
        self.append(f"{where}: {message}" if where else message)


def read_by(read: Callable[[Any, str, Faults], Any]) -> Mapping[str, Any]:
    """Say that a dataclass field's value is read by a function of its own.

    Args:
        read: takes the raw value, where it stands, and the faults.

    Returns:
        The field's metadata.
    """
    return {"read": read}


def is_scalar(value: Any) -> bool:
    """Whether a value is a text, a number, or a truth value.

    Args:
        value: of the file.

    Returns:
        True of those.
    """
    return isinstance(value, str | int | float | bool)


def values_of(value: Any) -> list[Any]:
    """One value or several, as a list.

    Args:
        value: of the file.

    Returns:
        Its parts.
    """
    return list(value) if isinstance(value, list | tuple) else [value]


def read_named(kind: type[T]) -> Callable[[Any, str, Faults], dict[str, T]]:
    """Read a mapping of names to objects of one kind.

    Args:
        kind: a dataclass.

    Returns:
        A function for `read_by`.
    """

    def read(raw: Any, where: str, faults: Faults) -> dict[str, T]:
        found = {}
        for name, each in _mapping(raw, where, faults).items():
            made = read_as(kind, each, f"{where}.{name}", faults)
            if made is not None:
                found[name] = made
        return found

    return read


def read_as(kind: type[T], raw: Any, where: str, faults: Faults) -> T | None:
    """Read a mapping as a dataclass.

    Args:
        kind: the dataclass; a field without `read_by` takes a text, a number or a truth value,
            whichever its default or annotation is.
        raw: of the file.
        where: the keys that lead to it, for messages.
        faults: gets what is wrong with it.

    Returns:
        The object; None if something is wrong.
    """
    before = len(faults)
    given = _mapping(raw, where, faults)
    known = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    taken: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            near = similar_names(name, known, 1, 0.6)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            faults.at(where, f"unknown key {name!r}{hint}")
            continue
        read = known[name].metadata.get("read")
        at = f"{where}.{name}" if where else name
        taken[name] = read(value, at, faults) if read else _plain(known[name], value, at, faults)
    for name, field in known.items():
        missing = field.default is dataclasses.MISSING and (
            field.default_factory is dataclasses.MISSING
        )
        if missing and name not in given:
            faults.at(where, f"has no {name}")
    return kind(**taken) if len(faults) == before else None


def _mapping(raw: Any, where: str, faults: Faults) -> Mapping[str, Any]:
    if isinstance(raw, Mapping) and all(isinstance(name, str) for name in raw):
        return raw
    faults.at(where, f"not a mapping of names: {raw!r}")
    return {}


_PLAIN: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "float": (int, float),
    "int": (int,),
    "bool": (bool,),
}


def _plain(field: dataclasses.Field[Any], value: Any, where: str, faults: Faults) -> Any:
    kinds: Sequence[type] = _PLAIN[str(field.type)]
    fits = isinstance(value, tuple(kinds)) and (bool in kinds or not isinstance(value, bool))
    if not fits:
        faults.at(where, f"{value!r} is no {field.type}")
    return value
