"""How several methods are told apart in one picture, variants of one method among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deltalens.catalog.methods import Look, look_of, method_name

__all__ = ["looks_of"]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
"""Seven colors and eight markers: the first 56 variants of a method differ in one of them."""


def looks_of(
    methods: Iterable[str], on_base: bool = False, known: Mapping[str, Look] | None = None
) -> dict[str, Look]:
    """How the methods of one picture are called and drawn.

    Args:
        methods: their labels in records.
        on_base: see `look_of`.
        known: looks that go first, by the method's name.

    Returns:
        Label -> look. A variant is called by its method and its settings; the first one has the
        method's color and marker, and the others have each a color and a marker of their own.
    """
    known = known or {}
    by_name: dict[str, list[str]] = {}
    for label in dict.fromkeys(methods):
        by_name.setdefault(method_name(label), []).append(label)
    looks: dict[str, Look] = {}
    for name, labels in by_name.items():
        own = known.get(name) or look_of(name, on_base) or Look(name, "0.2", "x")
        colors = [own.color, *(each for each in _COLORS if each != own.color)]
        markers = [own.marker, *(each for each in _MARKERS if each != own.marker)]
        for place, label in enumerate(labels):
            settings = label.partition(":")[2].replace(":", ", ")
            looks[label] = Look(
                f"{own.label} ({settings})" if settings else own.label,
                colors[place % len(colors)],
                markers[place % len(markers)],
                own.line,
            )
    return looks
