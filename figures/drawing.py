"""A figure that is drawn but not saved yet."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.errors import DeltaLensError
from deltalens.figures.style import LEGEND_ABOVE, drawn_now, fitted, styled
from deltalens.io.escaping import plain_label
from deltalens.io.files import write_whole
from deltalens.io.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawing", "save_all", "shown_title"]

_METADATA: Mapping[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""Image format -> the metadata that would change from one day, or machine, to the next."""
_BESIDE = ("csv", "md", "png", "svg")
"""What is saved beside a study's records."""
_NO_ROOM = "constrained_layout not applied"
_TITLE_ROOM = 0.78
"""The part of a panel's place that its title may take: it stands over the axis alone."""
_WIDE, _SIZE = 0.94, 10.0
"""The part of a figure's width that its title may take, and its size in points."""


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
    """Of a table: its text, by the ending of a file: `csv`, `md` and `tex`."""
    tables: Sequence[Table] = ()
    """Of a table: its blocks, as a terminal shows them."""
    exact: bool = field(default_factory=lambda: drawn_now().size is not None)
    """Whether the file is exactly as large as the figure; else it is cut to what is drawn."""

    def __post_init__(self) -> None:
        _escape_labels(self.figure)
        _shorten_titles(self.figure)

    def __repr__(self) -> str:
        return f"Drawing({self.name!r}, {', '.join(self.endings)})"

    @property
    def endings(self) -> list[str]:
        """The endings of files that it can be written as."""
        return [*self.texts, *_METADATA]

    def add_title(self, title: str) -> None:
        """Write on top whose numbers the figure shows.

        Args:
            title: in the words of the records; it is escaped. Of a long one the middle is left out.
        """
        shown = shown_title(title, self.figure.get_figwidth())
        style = {"fontsize": _SIZE, "fontweight": "bold", "parse_math": False}
        above = [legend for legend in self.figure.legends if legend.get_gid() == LEGEND_ABOVE]
        if above:  # Matplotlib would lay a title of the figure over it.
            above[0].set_title(shown)
            above[0].get_title().set(**style)
        else:
            self.figure.suptitle(shown, **style)

    def save(self, folder: Path, *, pdf: bool = False) -> list[Path]:
        """Write a PNG and an SVG, and of a table CSV and Markdown.

        Args:
            folder: an existing folder.
            pdf: write a PDF as well.

        Returns:
            The files.

        Raises:
            DeltaLensError: a file cannot be written.
        """
        wanted = (*_BESIDE, *(["pdf"] if pdf else []))
        endings = [ending for ending in wanted if ending in self.endings]
        return [self.write(folder / f"{self.name}.{ending}") for ending in endings]

    def write(self, file: Path) -> Path:
        """Write one file, in the format of its ending. It appears whole or not at all, and the same
        figure gives the same bytes.

        Args:
            file: in an existing folder.

        Returns:
            The file.

        Raises:
            DeltaLensError: no such format of this figure, or the file cannot be written.
        """
        ending = file.suffix.removeprefix(".").lower()
        if ending not in self.endings:
            what = f"{ending or 'a file without an ending'}: {self.name} is written as"
            raise DeltaLensError(f"{file}: {what} {', '.join(self.endings)}")
        write_whole(file, self.content(ending))
        return file

    def content(self, ending: str) -> bytes:
        """Make the content of a file; the same figure gives the same bytes.

        Args:
            ending: one of `endings`.

        Returns:
            The bytes of such a file.

        Raises:
            DeltaLensError: panels have no room in the size that is given.
        """
        return self.texts[ending].encode() if ending in self.texts else self._rendered(ending)

    def _rendered(self, ending: str) -> bytes:
        image = io.BytesIO()
        with styled(), warnings.catch_warnings():
            if self.exact:
                # Matplotlib's word for panels without room, which it draws over each other.
                warnings.filterwarnings("error", _NO_ROOM)
            try:
                self.figure.savefig(
                    image,
                    format=ending,
                    metadata=_METADATA[ending],
                    dpi="figure",
                    bbox_inches=None if self.exact else "tight",
                )
            except UserWarning as error:
                wide, high = self.figure.get_size_inches()
                raise DeltaLensError(
                    f"{self.name}: has no room in {wide:g} x {high:g} inches; give a larger size"
                ) from error
        return image.getvalue()


def save_all(drawings: Iterable[Drawing], folder: Path, *, pdf: bool = False) -> list[Path]:
    """Save several drawings into one folder.

    Args:
        drawings: what to save.
        folder: an existing folder.
        pdf: write PDFs as well.

    Returns:
        All files, in the order of the drawings.

    Raises:
        DeltaLensError: a file cannot be written.
    """
    return [path for drawing in drawings for path in drawing.save(folder, pdf=pdf)]


def _shorten_titles(figure: Figure) -> None:
    """Leave out the middle of a panel's title that would run into the next panel's."""
    for axes in figure.axes:
        spec, title = axes.get_subplotspec(), axes.title
        if spec is None or not title.get_text():
            continue
        room = figure.get_figwidth() * len(spec.colspan) / spec.get_gridspec().ncols
        # Not parsed as a formula, a dollar sign needs no escaping, and can be cut off.
        title.set_parse_math(False)
        lines = title.get_text().replace(r"\$", "$").split("\n")
        size = float(title.get_fontsize())
        title.set_text("\n".join(fitted(line, _TITLE_ROOM * room, size) for line in lines))


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


def shown_title(title: str, inches: float, size: float = _SIZE) -> str:
    """Write a title as a figure has room for it.

    Args:
        title: in the words of the records.
        inches: the figure's width.
        size: of the type, in points.

    Returns:
        The title, escaped; of a long one the middle is left out. Matplotlib must not parse it as a
        formula: its dollar signs are not escaped.
    """
    return fitted(plain_label(title).replace(r"\$", "$"), _WIDE * inches, size, "bold")
