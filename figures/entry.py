"""What is known of a figure or table: what it shows, what it is drawn from, and by which code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FigureEntry"]


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """A figure or table: what it shows, what it is drawn from, and how."""

    name: str
    """In the command line and in Python: `mft-fig4`."""
    paper: Literal["", "GMT", "MFT", "SPEFT"] = ""
    """The paper it comes from; empty for deltalens' own."""
    number: str = ""
    """In the paper: `Figure 4`; empty where the paper has no such figure."""
    shows: str
    """What it shows, in one line."""
    source: str = ""
    """The kind of study it is drawn from; or `run` (of a probe), or `training`; empty if it is
    drawn from nothing."""
    command: str = ""
    """The command that makes such a study."""
    code: str
    """`module:function` that draws it: (folders, entry, **options) -> list of `Drawing`."""
    several: bool = False
    """Whether several studies can share the figure, such as one for each domain."""
    options: tuple[str, ...] = ()
    """Keyword arguments that it takes, such as `ratio`."""
    same_as: str = ""
    """The name of its twin, if it is drawn exactly like another one."""
    lost: bool = False
    """Whether the body of the paper's table is lost in the text that we have."""

    @property
    def file_name(self) -> str:
        """Name of its files, without their ending: `mft_fig4`."""
        return self.name.replace("-", "_")

    @property
    def title(self) -> str:
        """Paper, number and what it shows."""
        numbered = f"{self.paper}, {self.number}" if self.number else self.paper
        return f"{numbered}: {self.shows}" if numbered else self.shows
