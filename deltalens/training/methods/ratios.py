"""Mask ratios as they are typed: one for all, or by kind, projection and block."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from deltalens.errors import DeltaLensError
from deltalens.numerics.rates import exact_rate, show_rate

__all__ = ["check_below_one", "parse_ratios", "show_ratios", "single_ratio"]


def parse_ratios(text: str) -> dict[str, Fraction]:
    """The mask ratio of each kind, projection or block.

    Args:
        text: `0.1`, or `0.1,q=0.2,4-7.down=0.05` (`deltalens.methods.mask_ratios.ratios_of`).

    Returns:
        Name -> ratio in [0, 1]; the one for everything else under "".

    Raises:
        DeltaLensError: a part is no ratio, or one name has two.
    """
    ratios: dict[str, Fraction] = {}
    for part in text.split(","):
        name, _, ratio = part.rpartition("=")
        if name.strip() in ratios:
            raise DeltaLensError(
                f"mask ratio {text}: two for {name.strip() or 'all'}; write one for all that has "
                "no name, as in 0.1,q=0.2,4-7.down=0.05"
            )
        ratios[name.strip()] = exact_rate(ratio)
    return ratios


def check_below_one(ratios: Mapping[str, Fraction]) -> None:
    """Refuse to mask everything.

    Args:
        ratios: name -> fraction masked out.

    Raises:
        DeltaLensError: one is 1.
    """
    for ratio in ratios.values():
        if ratio >= 1:
            raise DeltaLensError(
                f"mask ratio {show_rate(ratio)}: in [0, 1), the fraction masked out"
            )


def single_ratio(text: str, method: str) -> Fraction:
    """The mask ratio of a method that takes a single one.

    Args:
        text: as typed.
        method: its name, for messages.

    Returns:
        The ratio, in [0, 1).

    Raises:
        DeltaLensError: no ratio, or ratios with names.
    """
    ratios = parse_ratios(text)
    if {*ratios} != {""}:
        raise DeltaLensError(f"mask ratio {text}: {method} takes a single one")
    check_below_one(ratios)
    return ratios[""]


def show_ratios(ratios: Mapping[str, Fraction]) -> str:
    """Ratios as `parse_ratios` reads them.

    Args:
        ratios: name -> ratio.

    Returns:
        One spelling for equal ratios, however they were typed.
    """
    pairs = ((name, show_rate(ratio)) for name, ratio in sorted(ratios.items()))
    return ",".join(f"{name}={ratio}" if name else ratio for name, ratio in pairs)
