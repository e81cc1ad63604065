"""The papers' figures and tables, and deltalens' own, drawn from records alone. No torch here.

`draw` draws what a study's kind calls for, and `draw_figure` a figure by its name in `FIGURES`.
Both save it; `drawings`, `draw_for` and `draw_named` return matplotlib figures instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltalens.errors import DeltaLensError
from deltalens.figures.catalog import FIGURES
from deltalens.figures.drawing import Drawing, save_all
from deltalens.figures.entry import FigureEntry
from deltalens.figures.registry import Folders, as_paths, draw_named, figure_entry
from deltalens.figures.style import TITLES, Medium, Titles, drawn_for, read_size

__all__ = [
    "FIGURES",
    "Drawing",
    "FigureEntry",
    "draw",
    "draw_figure",
    "draw_for",
    "draw_named",
    "drawings",
    "figure_entry",
    "save_all",
    "save_drawings",
]


def drawings(folder: str | Path) -> list[Drawing]:
    """Draw the figures of a study or a training without saving them.

    Args:
        folder: of a study of any kind, or of a training.

    Returns:
        The figures that its kind calls for, with a title, and tables without the paper's own rows.

    Raises:
        RecordError: the folder holds neither, or no figure exists for its kind.
    """
    with drawn_for(titles=True, paper_rows=False):
        return [*_drawn_in_turn(folder)]


def draw(folder: str | Path, *, pdf: bool = False, paper: bool = False) -> list[Path]:
    """Draw the figures of a study or a training into its folder; each is saved before the next one
    is drawn. A title says whose numbers they are.

    Args:
        folder: of a study of any kind, or of a training.
        pdf: write PDFs as well.
        paper: show the paper's own rows below a study's tables, and those of other models than the
            study's beside it.

    Returns:
        The files: PNG and SVG; of a table CSV and Markdown as well.

    Raises:
        RecordError: the folder holds neither, or no figure exists for its kind.
    """
    with drawn_for(titles=True, paper_rows=paper):
        return save_all(_drawn_in_turn(folder), Path(folder), pdf=pdf)


def _drawn_in_turn(folder: str | Path) -> Iterable[Drawing]:
    """As `drawings`; where a later figure cannot be drawn, the earlier ones still can."""
    from deltalens.catalog.plugins import load_code
    from deltalens.catalog.studies import study_of
    from deltalens.errors import RecordError
    from deltalens.figures.defaults import draw_training
    from deltalens.io.records import is_training, load_study

    if is_training(folder):
        return draw_training(Path(folder))
    record = load_study(folder)
    study = study_of(record.spec)
    if study is None or not study.figure:
        raise RecordError(f"{record.path}: no figure exists for a study of kind {record.kind!r}")
    drawn: Iterable[Drawing] = load_code(study.figure)(record.path)
    return drawn


def draw_figure(
    name: str,
    studies: Folders = (),
    out: str | Path | None = None,
    *,
    ratio: float | None = None,
    mixed: Folders = (),
    medium: Medium = "paper",
    titles: Titles = "auto",
    size: str | None = None,
    dpi: int | None = None,
    pdf: bool = False,
    paper: bool = False,
) -> list[Path]:
    """Draw a figure or table by its name, and save it.

    Args:
        name: one of `FIGURES`: `mft-fig8`, `gmt-tab1`, ...
        studies: the folder of the study, run or training it is drawn from; several where
            the figure takes several, such as one for each domain; none where it shows a method.
        out: a file, whose ending says the format: `svg`, `png` or `pdf`, and of a table `md`, `csv`
            or `tex`; or an existing folder. By default the first study's folder, or without a study
            the current one.
        ratio: for `gmt-tab1` and `gmt-tab2`: the mask ratio at which every method is shown. By
            default each method is shown at its best one, chosen on the data shown.
        mixed: for `mft-tab1` and `mft-tab2`: comparisons that start from a fine-tune on a mixture
            of domains; the table's second half.
        medium: `paper`, or `slides`, whose type is larger.
        titles: whether a title says whose numbers are shown: `on`, `off`, or `auto`: on slides but
            not on paper, where the caption says it.
        size: width, or width and height, in inches: `3.3x2.5`. By default a page's width, and as
            high as the figure needs.
        dpi: dots per inch of a PNG.
        pdf: write a PDF as well, where `out` is a folder.
        paper: show the paper's own rows below a study's, and beside it those of models that are not
            the study's.

    Returns:
        The files; in a folder PNG and SVG, of a table CSV and Markdown as well.

    Raises:
        DeltaLensError: no figure has this name, or it does not take several studies or an option,
            or cannot be written as such a file.
        RecordError: a folder does not hold the kind of study that the figure is drawn from, or
            nothing is measured yet.
    """
    drawn = draw_for(
        name,
        studies,
        ratio=ratio,
        mixed=mixed,
        medium=medium,
        titles=titles,
        size=size,
        dpi=dpi,
        paper=paper,
    )
    return save_drawings(drawn, studies, out, pdf=pdf)


def draw_for(
    name: str,
    studies: Folders = (),
    *,
    ratio: float | None = None,
    mixed: Folders = (),
    medium: Medium = "paper",
    titles: Titles = "auto",
    size: str | None = None,
    dpi: int | None = None,
    paper: bool = False,
) -> list[Drawing]:
    """Draw a figure or table as `draw_figure` does, without saving it.

    Args:
        name, studies, ratio, mixed, medium, titles, size, dpi, paper: as `draw_figure` takes them.

    Returns:
        The figure; a landscape and a probe's run are drawn as several.

    Raises:
        DeltaLensError: as `draw_figure`.
    """
    if titles not in TITLES:
        raise DeltaLensError(f"titles {titles!r}: choose from {', '.join(TITLES)}")
    titled = titles == "on" or (titles == "auto" and medium == "slides")
    shape = read_size(size) if size is not None else None
    with drawn_for(medium=medium, titles=titled, size=shape, dpi=dpi, paper_rows=paper):
        return draw_named(name, studies, ratio=ratio, mixed=as_paths(mixed) or None)


def save_drawings(
    drawings: Iterable[Drawing],
    studies: Folders,
    out: str | Path | None = None,
    *,
    pdf: bool = False,
) -> list[Path]:
    """Save drawings of one figure.

    Args:
        drawings: what to save.
        studies: what they were drawn from.
        out, pdf: as `draw_figure` takes them.

    Returns:
        The files. If several drawings share a file's name, the second and later ones are numbered.

    Raises:
        DeltaLensError: a drawing cannot be written as such a file, or a file cannot be written.
    """
    first, *_ = [*as_paths(studies), Path()]
    target = first if out is None else Path(out)
    if target.is_dir():
        return save_all(drawings, target, pdf=pdf)
    return [
        drawing.write(target if not place else target.with_stem(f"{target.stem}-{place + 1}"))
        for place, drawing in enumerate(drawings)
    ]
