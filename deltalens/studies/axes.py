"""How the axes of a study grow: what a folder holds and what is asked for now, as one call would
have asked for it. The order does not depend on which came first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

__all__ = ["in_order", "largest", "named", "numbers", "rates", "settings"]


def in_order(values: Sequence[str], order: Sequence[str]) -> list[str]:
    """Each once, in the order of those that a study knows."""
    return [value for value in order if value in values]


def named(order: Sequence[str]) -> Callable[[Any, Any], list[str]]:
    """Of names that a study knows: strategies, methods."""
    return lambda held, now: in_order([*held, *now], order)


def largest(held: int, now: int) -> int:
    """Of counts whose members are numbered from 0: seeds, repeats."""
    return max(held, now)


def numbers(held: Sequence[int], now: Sequence[int]) -> list[int]:
    """Of numbers: sizes of groups."""
    return sorted({*held, *now})


def rates(held: Sequence[str], now: Sequence[str]) -> list[str]:
    """Of exact rates as `show_rate` writes them."""
    return sorted({*held, *now}, key=Fraction)


def settings(order: Sequence[str]) -> Callable[[Any, Any], dict[str, Any] | None]:
    """Of each method's own settings, which have to be the same wherever both have the method."""

    def union(held: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any] | None:
        if any(held[name] != now[name] for name in held.keys() & now.keys()):
            return None
        found = {**held, **now}
        return {name: found[name] for name in in_order(list(found), order)}

    return union
