"""A figure that is drawn but not saved yet."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.figures.style import styled
from deltalens.io.escaping import plain_label
from deltalens.io.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawing", "save_all"]

_METADATA: Mapping[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}}
"""Image format -> the metadata that would change from one day, or machine, to the next."""


@dataclass(frozen=True)
class Drawing:
    """A figure, the name of its files, and what is saved beside it.

    Names in a figure come from files. Its labels are therefore escaped: a dollar sign is a dollar
    sign and starts no formula, and control characters are shown rather than obeyed.
    """

    name: str
    """Name of the files, without their ending: `mft_fig4`."""
    figure: Figure
    texts: Mapping[str, str] = field(default_factory=dict)
    """Text files to save beside the images, by their ending: a table's `csv` and `md`."""

    def __post_init__(self) -> None:
        _escape_labels(self.figure)

    def __repr__(self) -> str:
        return f"Drawing({self.name!r}, {', '.join([*self.texts, *_METADATA])})"

    def save(self, folder: Path) -> list[Path]:
        """Write the text files, a PNG and an SVG. Each file appears whole or not at all, and the
        same figure gives the same bytes.

        Args:
            folder: an existing folder.

        Returns:
            The files.

        Raises:
            DeltaLensError: a file cannot be written.
        """
        contents = {ending: text.encode() for ending, text in self.texts.items()}
        with styled():
            for kind, metadata in _METADATA.items():
                image = io.BytesIO()
                self.figure.savefig(image, format=kind, metadata=metadata, bbox_inches="tight")
                contents[kind] = image.getvalue()
        for ending, content in contents.items():
            write_whole(folder / f"{self.name}.{ending}", content)
        return [folder / f"{self.name}.{ending}" for ending in contents]


def save_all(drawings: Iterable[Drawing], folder: Path) -> list[Path]:
    """Save several drawings into one folder.

    Args:
        drawings: what to save.
        folder: an existing folder.

    Returns:
        All files, in the order of the drawings.

    Raises:
        DeltaLensError: a file cannot be written.
    """
    return [path for drawing in drawings for path in drawing.save(folder)]


def _escape_labels(figure: Figure) -> None:
    """Escape every text except the numbers along the axes, which matplotlib writes itself."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    ticks = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                ticks |= {id(tick.label1), id(tick.label2)}
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter):
                formatter.seq = [plain_label(label) for label in formatter.seq]
            elif isinstance(formatter, FuncFormatter):
                formatter.func = functools.partial(_escaped_tick, formatter.func)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in ticks:
            label = plain_label(text.get_text())
            text.set_text(label if text.get_parse_math() else label.replace(r"\$", "$"))


def _escaped_tick(
    label: Callable[[float, int | None], str], value: float, index: int | None
) -> str:
    return plain_label(label(value, index))
