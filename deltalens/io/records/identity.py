"""Whether a folder holds what is asked for now, or something that grows to it. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError, fault_list
from deltalens.io.version import FORMAT, IDENTITY, version

__all__ = ["Union", "check_version", "united"]

Union = Callable[[Any, Any], Any]
"""Of what was asked before and is asked now along one axis of a study: the values of a single call
for all of it, or None where there is no such call."""


def check_version(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to go on with what a version recorded that knew less of what decides the numbers, or
    that would not notice damage.

    Raises:
        RecordError: with both versions.
    """
    if manifest.get("identity") != IDENTITY or manifest.get("format") != FORMAT:
        raise RecordError(
            f"{path}: made by another deltalens ({manifest.get('deltalens')}; this one is "
            f"{version()}), which did not record all that decides the numbers: it can be read and "
            "drawn, but not gone on with; choose another folder"
        )


def united(
    headline: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    axes: Mapping[str, Union] | None = None,
) -> dict[str, Any]:
    """What a single call would have asked for both times.

    Args:
        headline: of the message, where there is no such call.
        before, now: what was asked, as JSON values.
        axes: the names along which the two may differ, and how their values become one.

    Raises:
        RecordError: names everything that differs.
    """
    axes = axes or {}
    try:
        unions = {n: axes[n](before[n], now[n]) for n in axes if n in before and n in now}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RecordError(f"{headline} its axes cannot be read ({error})") from error
    faults = [
        fault
        for name in sorted(before.keys() | now.keys())
        if unions.get(name) is None
        for fault in _differences(name, before.get(name), now.get(name), name in axes)
    ]
    if faults:
        raise RecordError(fault_list(headline, faults))
    return {**now, **unions}


def _differences(name: str, before: Any, now: Any, common: bool = False) -> Iterator[str]:
    """What differs between two values, part by part where they have parts: `settings.mft.blocks`;
    if asked for, only in the parts that both have."""
    if before == now:
        return
    if not (isinstance(before, dict) and isinstance(now, dict)):
        yield f"{name}: {before!r} there, {now!r} now"
        return
    for part in sorted(before.keys() & now.keys() if common else before.keys() | now.keys()):
        yield from _differences(f"{name}.{part}", before.get(part), now.get(part))
