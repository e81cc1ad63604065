"""Mapping the names of a fine-tune's tensors to those of its base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

__all__ = ["Names"]

_NORMS = {"weight": "gamma", "bias": "beta", "gamma": "weight", "beta": "bias"}


class Names:
    """Maps a fine-tune's tensor names to the base's.

    They can differ by a prefix (`model.`, `transformer.`, ...) in one of the checkpoints, and in
    LayerNorm's `weight` and `bias`, which older checkpoints call `gamma` and `beta`.

    Args:
        ft: the fine-tune's stored names.
        base: the base's stored names.

    Attributes:
        note: which prefix was added or removed, for the records; empty if none.
    """

    def __init__(self, ft: Iterable[str], base: Iterable[str]) -> None:
        ft, base = set(ft), set(base)
        self._matched = ft & base
        self._base = base
        (ft_prefix, ft_gain), (base_prefix, base_gain) = (
            _best_prefix(ft, base),
            _best_prefix(base, ft),
        )
        self._remove = ft_prefix if ft_gain > 0 and ft_gain >= base_gain else ""
        self._add = base_prefix if base_gain > ft_gain else ""
        self.note = ""
        if self._remove or self._add:
            where = "the fine-tune" if self._remove else "the base"
            self.note = f"names differ by a prefix: {self._remove or self._add!r} in {where} only"

    def in_base(self, name: str) -> str:
        """Map a tensor's name to the base's.

        Args:
            name: the name in the fine-tune.

        Returns:
            The name in the base. If the base has no such tensor, the name that it would have.
        """
        if name in self._matched:
            return name
        prefixed = self._prefixed(name)
        if prefixed in self._base:
            return prefixed
        norm = _other_norm_name(prefixed)
        return norm if norm in self._base and norm not in self._matched else prefixed

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
    """The prefix whose removal matches the most further names, and how many it matches."""
    gains = Counter(
        prefix
        for name in names - others
        for prefix in _prefixes(name)
        if name[len(prefix) :] in others
    )
    best = min(gains, key=lambda prefix: (-gains[prefix], len(prefix), prefix), default="")
    return best, gains[best]
