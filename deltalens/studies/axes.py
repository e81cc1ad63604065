"""How the axes of a study grow. Each function merges the values that a study's folder records with
those that a new call requests, into the values that one call for both would have recorded: the
result does not depend on which came first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from deltalens.catalog.methods import method_name

__all__ = ["in_order", "largest", "names", "numbers", "rates", "settings"]


def in_order(values: Sequence[str], order: Sequence[str]) -> list[str]:
    """Sort names as a study's table does, and remove duplicates.

    Args:
        values: names, in any order; variants of a method count as the method.
        order: the names that the study knows, in the order of its table.

    Returns:
        The known names in that order, then all others alphabetically; variants of one method
        alphabetically.
    """
    place = {name: at for at, name in enumerate(order)}
    return sorted({*values}, key=lambda value: (place.get(method_name(value), len(place)), value))


def names(order: Sequence[str]) -> Callable[[Any, Any], list[str]]:
    """Make a function that merges two lists of names, such as strategies or methods.

    Args:
        order: the names that the study knows, in the order of its table.

    Returns:
        (recorded, requested) -> the names of both, sorted by `in_order`.
    """
    return lambda recorded, requested: in_order([*recorded, *requested], order)


def largest(recorded: int, requested: int) -> int:
    """Merge two counts whose members are numbered from 0, such as seeds or repeats.

    Args:
        recorded: the count in the study's folder.
        requested: the count of the new call.

    Returns:
        The larger of the two.
    """
    return max(recorded, requested)


def numbers(recorded: Sequence[int], requested: Sequence[int]) -> list[int]:
    """Merge two lists of whole numbers, such as group sizes.

    Args:
        recorded: the numbers in the study's folder.
        requested: the numbers of the new call.

    Returns:
        The numbers of both, ascending, without duplicates.
    """
    return sorted({*recorded, *requested})


def rates(recorded: Sequence[str], requested: Sequence[str]) -> list[str]:
    """Merge two lists of exact rates, written as `show_rate` writes them.

    Args:
        recorded: the rates in the study's folder.
        requested: the rates of the new call.

    Returns:
        The rates of both, ascending, without duplicates.
    """
    return sorted({*recorded, *requested}, key=Fraction)


def settings(order: Sequence[str]) -> Callable[[Any, Any], dict[str, Any] | None]:
    """Make a function that merges two mappings from methods to their settings.

    Args:
        order: the methods that the study knows, in the order of its table.

    Returns:
        (recorded, requested) -> the settings of both, sorted by `in_order`; None if a method has
        different settings in the two.
    """

    def merge(recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, Any] | None:
        shared = recorded.keys() & requested.keys()
        if any(recorded[name] != requested[name] for name in shared):
            return None
        merged = {**recorded, **requested}
        return {name: merged[name] for name in in_order(list(merged), order)}

    return merge
