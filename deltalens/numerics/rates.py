"""Rates as exact decimals, as they were typed, never rounded through binary."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from deltalens.errors import DeltaLensError

__all__ = ["Rate", "exact_rate", "exact_rates", "exact_share", "parse_rates", "show_rate"]

Rate = str | float | int | Decimal | Fraction
"""A rate as text or as a number."""

_MAX_RATES = 10_000
_MAX_DECIMALS = 1_000


def exact_rate(rate: Rate, argument: str = "rate") -> Fraction:
    """Parse a rate exactly: "0.7" and 0.7 are both 7/10.

    Args:
        rate: a number from 0 to 1.
        argument: name of the caller's argument, for the error message.

    Returns:
        The exact fraction.

    Raises:
        DeltaLensError: it is not a number, or lies outside [0, 1].
    """
    try:
        number = rate if isinstance(rate, Fraction) else Decimal(str(rate).strip())
        inside = 0 <= number <= 1
    except (InvalidOperation, ValueError) as error:
        raise DeltaLensError(f"{argument} {str(rate)!r} is not a number between 0 and 1") from error
    if isinstance(number, Decimal) and number.is_infinite():
        raise DeltaLensError(f"{argument} {str(rate)!r} is not a number between 0 and 1")
    if not inside:
        raise DeltaLensError(f"{argument} {rate} is outside [0, 1]")
    # As a fraction, 1e-999999999 would have a billion digits.
    if isinstance(number, Decimal) and number and number.adjusted() < -_MAX_DECIMALS:
        raise DeltaLensError(f"{argument} {rate}: has more than {_MAX_DECIMALS:,} decimals")
    return Fraction(number)


def exact_share(value: Rate, argument: str) -> Fraction:
    """Parse a share exactly.

    Args:
        value: a number from 0 to 1; as text also in percent, as papers print it ("0.35%").
        argument: name of the caller's argument, for the error message.

    Returns:
        The exact fraction.

    Raises:
        DeltaLensError: it is not a number, or lies outside [0, 1].
    """
    text = str(value).strip()
    if isinstance(value, Fraction) or not text.endswith("%"):
        return exact_rate(value, argument)
    try:
        return exact_rate(Decimal(text[:-1].strip()).scaleb(-2), argument)
    except InvalidOperation as error:
        raise DeltaLensError(f"{argument} {text!r} is not a number") from error


def parse_rates(text: str) -> list[Fraction]:
    """Parse a list of rates.

    Args:
        text: ranges such as `0:1:0.1` (both ends included), rates such as `0.1,0.5`, or a mixture.

    Returns:
        The exact rates, ascending, each once.

    Raises:
        DeltaLensError: a part is malformed, or a rate lies outside [0, 1].
    """
    rates: list[Fraction] = []
    for part in text.split(","):
        ends = part.split(":")
        if len(ends) == 1:
            rates.append(exact_rate(part))
            continue
        if len(ends) != 3:
            raise DeltaLensError(f"rates {part!r}: write start:stop:step, as in 0:1:0.1")
        start, stop, step = (exact_rate(end) for end in ends)
        if step == 0 or stop < start:
            raise DeltaLensError(
                f"rates {part!r}: the step must be above 0, and stop not below start"
            )
        if (stop - start) / step > _MAX_RATES:
            raise DeltaLensError(f"rates {part!r}: more than {_MAX_RATES:,} rates")
        rates += [start + step * i for i in range(int((stop - start) / step) + 1)]
    return sorted(set(rates))


def exact_rates(rates: Rate | Iterable[Rate]) -> list[Fraction]:
    """Parse rates given as text, as a number or as several.

    Args:
        rates: text as in `parse_rates`, or one number from 0 to 1, or several.

    Returns:
        The exact rates, ascending, each once.

    Raises:
        DeltaLensError: a rate is malformed, or lies outside [0, 1].
    """
    if isinstance(rates, str):
        return parse_rates(rates)
    if isinstance(rates, int | float | Decimal | Fraction):
        return [exact_rate(rates)]
    return sorted({exact_rate(rate) for rate in rates})


def show_rate(rate: Fraction) -> str:
    """Format a rate as a short decimal, or as a fraction if no finite decimal exists.

    Args:
        rate: an exact rate.

    Returns:
        Text such as `0.7` or `1/3`.
    """
    reduced = rate.denominator
    for prime in (2, 5):
        while reduced % prime == 0:
            reduced //= prime
    if reduced != 1:
        return str(rate)
    text = format(Decimal(rate.numerator) / Decimal(rate.denominator), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
