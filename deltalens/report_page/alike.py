"""Sections of one kind side by side: what they found, and in what they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltalens.io.tables import Table
from deltalens.report_page.section import KINDS, Section

__all__ = ["Group", "grouped"]

_MOST_COLUMNS = 8
"""Studies in a table of differences; wider ones cannot be read."""
_LONGEST = 60
"""Characters of a value in it."""


@dataclass(frozen=True)
class Group:
    """The sections of one kind."""

    kind: str
    sections: Sequence[Section]

    @property
    def title(self) -> str:
        """What they are called together."""
        one, many = KINDS.get(self.kind, (self.kind, self.kind))
        return f"{many} ({len(self.sections)})" if len(self.sections) > 1 else one

    @property
    def differences(self) -> Table | None:
        """Settings, models and data in which several sections differ; None of one section, of too
        many, or if they do not differ."""
        if not 1 < len(self.sections) <= _MOST_COLUMNS:
            return None
        described = [_described(section) for section in self.sections]
        names = dict.fromkeys(name for each in described for name in each)
        rows = tuple(
            (name, *(_shortened(each.get(name, "–")) for each in described))
            for name in names
            if len({each.get(name, "–") for each in described}) > 1
        )
        heads = ("setting", *(section.name for section in self.sections))
        return Table("In what they differ", heads, rows) if rows else None


def grouped(sections: Sequence[Section]) -> list[Group]:
    """Put sections of one kind together.

    Args:
        sections: in any order.

    Returns:
        Groups in the order of `KINDS`, kinds that packages add last.
    """
    kinds = [*KINDS, *(section.kind for section in sections if section.kind not in KINDS)]
    groups = [
        Group(kind, [section for section in sections if section.kind == kind])
        for kind in dict.fromkeys(kinds)
    ]
    return [group for group in groups if group.sections]


def _described(section: Section) -> dict[str, str]:
    by_role: dict[str, list[str]] = {}
    for origin in section.origins:
        name = origin.name.rstrip("/").rpartition("/")[2]
        short = f"{name or '?'} ({origin.fingerprint[:8]})"
        by_role.setdefault(origin.role, []).append(short)
    inputs = {role: ", ".join(names) for role, names in by_role.items()}
    return {**inputs, **section.conditions, **section.settings}


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
