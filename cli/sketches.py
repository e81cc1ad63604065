"""First pictures of a landscape, while its points come in."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltalens.io.records import Cell, StudyRecord

__all__ = ["Sketches"]


class Sketches:
    """Draws the study each time that a level of the grid is complete: the plane as a whole after
    the first few points, then twice as fine each time."""

    def __init__(self) -> None:
        self._due: list[int] | None = None
        self._done = 0

    def on_cell(self, folder: Path, cell: Cell) -> None:
        """A cell is journalled.

        Args:
            folder: of the study.
            cell: that was measured.
        """
        from deltalens.io.records import load_study

        if self._due is None:
            record = load_study(folder)
            kept = record.cells.drop_duplicates(["a", "b", "mark", "data"])
            self._due, self._done = _ends_of_levels(record), len(kept) - 1
        self._done += 1
        if self._due and self._done >= self._due[0]:
            self._due = [end for end in self._due if end > self._done]
            if self._due:
                from deltalens.figures import draw_named, save_all

                save_all(draw_named("landscape", folder, first_only=True), folder)


def _ends_of_levels(record: StudyRecord) -> list[int]:
    """How many journal lines each level of the grid ends with; the coarsest is no picture yet."""
    from deltalens.studies.landscape.grid import levels

    sizes = [len(level) for level in levels(record.spec["grid"])]
    marks, sets = len(record.facts["plane"]["marks"]), len(record.facts["data"])
    return [(marks + end) * sets for end in list(accumulate(sizes))[1:]]
