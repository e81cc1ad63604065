"""A figure that was drawn by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.api.results import Shown

if TYPE_CHECKING:
    from deltalens.io.tables import Table

__all__ = ["Drawn"]


@dataclass(frozen=True, repr=False)
class Drawn(Shown):
    """A figure or table of a paper, drawn from records.

    Example:
        >>> deltalens.draw_figure("mft-fig1", out="method.svg")
        <Drawn mft-fig1: method.svg>
    """

    name: str
    files: list[Path]
    """Where it was written."""
    drawings: Sequence[Any]
    """Each a `deltalens.figures.Drawing`."""

    def __repr__(self) -> str:
        return f"<Drawn {self.name}: {', '.join(file.name for file in self.files)}>"

    @property
    def path(self) -> Path:  # type: ignore[override]
        """The folder of its files."""
        return self.files[0].parent

    def _sentences(self) -> Sequence[str]:
        return [f"drawn: {file}" for file in self.files]

    def _tables(self) -> Sequence[Table]:
        return [table for drawing in self.drawings for table in drawing.tables]

    def _drawings(self) -> Sequence[Any]:
        return self.drawings
