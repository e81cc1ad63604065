"""Comparing the specification of a folder of records with a new one. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError, fault_list
from deltalens.io.version import FORMAT, IDENTITY, version

__all__ = ["Union", "check_version", "united"]

Union = Callable[[Any, Any], Any]
"""Unites the recorded and the requested values along one axis of a study: returns the values of a
single call for both, or None if there is no such call."""


def check_version(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to resume records of a version that recorded less of what decides the numbers, or that
    had no checksums.

    Args:
        path: the folder of records.
        manifest: its manifest.

    Raises:
        RecordError: names both versions.
    """
    if manifest.get("identity") != IDENTITY or manifest.get("format") != FORMAT:
        raise RecordError(
            f"{path}: written by another version of deltalens ({manifest.get('deltalens')}; this "
            f"is {version()}), which did not record everything that decides the numbers: it can be "
            "read and drawn, but not resumed; choose another folder"
        )


def united(
    headline: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    axes: Mapping[str, Union] | None = None,
) -> dict[str, Any]:
    """Unite the specifications of two calls into that of a single call.

    Args:
        headline: first line of the message if there is no such call.
        before: the recorded specification, as JSON values.
        now: the requested specification, as JSON values.
        axes: fields in which the two may differ, and how their values are united.

    Returns:
        The united specification.

    Raises:
        RecordError: lists everything that differs.
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
    """Differences between two values, field by field if they are objects: `settings.mft.blocks`;
    with `common`, only in fields that both have."""
    if before == now:
        return
    if not (isinstance(before, dict) and isinstance(now, dict)):
        yield f"{name}: {before!r} in the folder, {now!r} now"
        return
    for part in sorted(before.keys() & now.keys() if common else before.keys() | now.keys()):
        yield from _differences(f"{name}.{part}", before.get(part), now.get(part))
