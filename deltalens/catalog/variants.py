"""Variants of one method in one study: `speft:metric=snip:scope=tensor` is `speft` with settings of
its own, as typed. And which row of SPEFT's tables (arXiv 2412.13488) each is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from deltalens.catalog.methods import look_of
from deltalens.catalog.salience import SALIENCE_METRICS

__all__ = ["Masks", "Variant", "is_sparse", "masks_of", "printed_row", "variant_of"]

_SPARSE = "speft"
_METRIC, _SCOPE = "gradient", "global"
"""The paper's choice, and that of a study that names none."""


class Variant(NamedTuple):
    """A method, and the settings in which it differs from the study's others."""

    method: str
    """Its name in `METHODS`."""
    settings: Mapping[str, str]
    """Setting -> value as typed; the names with `_`, as records have them."""

    @property
    def in_words(self) -> tuple[str, ...]:
        """The settings, as a table has them: `lora rank 4`."""
        pairs = self.settings.items()
        return tuple(f"{name.replace('_', ' ')} {value}".strip() for name, value in pairs)


class Masks(NamedTuple):
    """How SPEFT chooses what it trains."""

    metric: str = _METRIC
    scope: str = _SCOPE
    refresh_every: str = ""
    """Steps between two masks; empty of static ones."""
    others: tuple[str, ...] = ()
    """Further settings of this variant alone, in words."""


def variant_of(label: str) -> Variant:
    """Read a method's label in the records of a study.

    Args:
        label: `lora`, or `speft:scope=tensor:refresh-every=100`.

    Returns:
        The method and the settings of the label. A part without `=` is a setting without a value.

    Example:
        >>> variant_of("speft:refresh-every=100").settings
        {'refresh_every': '100'}
    """
    method, *parts = label.split(":")
    pairs = (part.partition("=") for part in parts)
    return Variant(method, {name.replace("-", "_"): value for name, _, value in pairs})


def is_sparse(label: str) -> bool:
    """Tell whether a method is SPEFT, with whatever settings.

    Args:
        label: in records.

    Returns:
        Whether it is.
    """
    return variant_of(label).method == _SPARSE


def masks_of(label: str, recorded: Mapping[str, Any] | None = None) -> Masks:
    """Read how a variant of SPEFT chooses its masks.

    Args:
        label: in records.
        recorded: the settings of the method in the records, for those that the label leaves out.

    Returns:
        The choice; where neither says, the paper's: gradient, global and static.
    """
    known = {name: value for name, value in (recorded or {}).items() if value is not None}
    own = dict(variant_of(label).settings)
    metric, scope, every = (
        str(own.pop(name, known.get(name, otherwise)))
        for name, otherwise in (("metric", _METRIC), ("scope", _SCOPE), ("refresh_every", ""))
    )
    static = every in ("", "0", "none")
    return Masks(metric, scope, "" if static else every, Variant("", own).in_words)


def printed_row(label: str, recorded: Mapping[str, Any] | None = None) -> str:
    """Name a method as SPEFT's tables do: sparse tuning with global, static masks by its salience
    metric, any other method by its label, which for LoRA and PiSSA is theirs. What else was set,
    such as the density, does not count: the paper has one in each table.

    Args:
        label: in records.
        recorded: as `masks_of` takes it.

    Returns:
        The row's name; empty of masks that the tables do not have.
    """
    if is_sparse(label):
        masks = masks_of(label, recorded)
        facts = SALIENCE_METRICS.get(masks.metric)
        static = masks.scope == _SCOPE and not masks.refresh_every
        return facts.printed if facts and static else ""
    look = look_of(variant_of(label).method)
    return look.label if look is not None else ""
