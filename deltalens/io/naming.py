"""What a fine-tune's tensors are called in its base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

__all__ = ["Names"]

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
