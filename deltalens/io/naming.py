"""The names of a fine-tune's tensors: what its base calls them, and which take part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from deltalens.errors import PairingError, nearest

__all__ = ["Choice", "Names"]

_NORMS = {"weight": "gamma", "bias": "beta", "gamma": "weight", "beta": "bias"}


class Names:
    """What the fine-tune's tensors are called in the base: a prefix (`model.`, `transformer.`, ...)
    can be on one side only, and LayerNorm's `weight` and `bias` were once `gamma` and `beta`."""

    def __init__(self, ft: Iterable[str], base: Iterable[str]) -> None:
        ft, base = set(ft), set(base)
        self._matched = ft & base
        self._base = base
        (on_ft, gain_ft), (on_base, gain_base) = _best_prefix(ft, base), _best_prefix(base, ft)
        self._remove = on_ft if gain_ft > 0 and gain_ft >= gain_base else ""
        self._add = on_base if gain_base > gain_ft else ""
        self.note = ""
        if self._remove or self._add:
            where = "the fine-tune" if self._remove else "the base"
            self.note = f"names differ by a prefix: {self._remove or self._add!r} in {where} only"

    def in_base(self, name: str) -> str:
        """What a tensor of the fine-tune is called in the base; itself, if it is not there."""
        if name in self._matched:
            return name
        found = self._prefixed(name)
        if found in self._base:
            return found
        other = _other_norm_name(found)
        return other if other in self._base and other not in self._matched else found

    def _prefixed(self, name: str) -> str:
        if self._remove and name.startswith(self._remove):
            return name[len(self._remove) :]
        if self._add and self._has_prefix(self._add + name):
            return self._add + name
        return name

    def _has_prefix(self, name: str) -> bool:
        return name in self._base or _other_norm_name(name) in self._base


def _other_norm_name(name: str) -> str | None:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_NORMS[last]}" if last in _NORMS else None


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in (1, 2):
        if len(parts) > count:
            yield ".".join(parts[:count]) + "."


def _best_prefix(names: set[str], others: set[str]) -> tuple[str, int]:
    """The prefix without which most names find their partner, and how many do only so."""
    gains = Counter(
        prefix
        for name in names - others
        for prefix in _prefixes(name)
        if name[len(prefix) :] in others
    )
    best = min(gains, key=lambda prefix: (-gains[prefix], len(prefix), prefix), default="")
    return best, gains[best]


class Choice:
    """Which tensors take part, by the names that they have in either checkpoint.

    Args:
        include, exclude: regular expressions, searched in the names.

    Raises:
        PairingError: one is no regular expression.
    """

    def __init__(self, include: str | None, exclude: str | None) -> None:
        self.include, self.exclude = include, exclude
        self._want, self._refuse = self._compiled("include"), self._compiled("exclude")

    def _compiled(self, option: str) -> re.Pattern[str] | None:
        pattern = getattr(self, option)
        try:
            return re.compile(pattern) if pattern is not None else None
        except re.error as error:
            raise PairingError(
                f"{option}: {pattern!r} is no regular expression: {error}"
            ) from error

    def takes(self, *names: str) -> bool:
        """Whether a tensor that is called so takes part."""
        want, refuse = self._want, self._refuse
        return (want is None or any(want.search(name) for name in names)) and not (
            refuse is not None and any(refuse.search(name) for name in names)
        )

    def check(self, names: Collection[str], where: object, in_base: Callable[[str], str]) -> None:
        """Something has to be left of the fine-tune.

        Raises:
            PairingError: nothing is.
        """
        if not any(self.takes(name, in_base(name)) for name in names):
            near = nearest(self.include or "", names, 3, 0.1)
            near = near or list(names)[:3]
            raise PairingError(
                f"include {self.include!r} and exclude {self.exclude!r} leave no tensor of "
                f"{where}; its names look like {', '.join(near)}"
            )
