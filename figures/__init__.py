"""The papers' figures and tables, and deltalens' own, drawn from records alone. No torch here.

`draw` draws what a study's kind calls for, and `draw_figure` a figure by its name in `FIGURES`.
Both save it; `drawings` and `draw_named` return matplotlib figures instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltalens.figures.drawing import Drawing, save_all
from deltalens.figures.registry import (
    FIGURES,
    FigureEntry,
    Folders,
    as_paths,
    draw_named,
    figure_entry,
)

__all__ = [
    "FIGURES",
    "Drawing",
    "FigureEntry",
    "draw",
    "draw_figure",
    "draw_named",
    "drawings",
    "figure_entry",
    "save_all",
]


def drawings(folder: str | Path) -> list[Drawing]:
    """Draw the figures of a study or a training without saving them.

    Args:
        folder: of a study of any kind, or of a training that removed weights.

    Returns:
        The figures that its kind calls for.

    Raises:
        RecordError: the folder holds neither, or no figure exists for its kind.
    """
    return [*_drawn_in_turn(folder)]


def draw(folder: str | Path) -> list[Path]:
    """Draw the figures of a study or a training into its folder; each is saved before the next one
    is drawn.

    Args:
        folder: of a study of any kind, or of a training that removed weights.

    Returns:
        The files: PNG and SVG; of a table CSV and Markdown as well.

    Raises:
        RecordError: the folder holds neither, or no figure exists for its kind.
    """
    return save_all(_drawn_in_turn(folder), Path(folder))


def _drawn_in_turn(folder: str | Path) -> Iterable[Drawing]:
    """As `drawings`; where a later figure cannot be drawn, the earlier ones still can."""
    from deltalens.catalog.plugins import load_code
    from deltalens.catalog.studies import study_of
    from deltalens.errors import RecordError
    from deltalens.io.records import is_training, load_study

    if is_training(folder):
        return draw_named("removed-shares", folder)
    record = load_study(folder)
    study = study_of(record.spec)
    if study is None or not study.figure:
        raise RecordError(f"{record.path}: no figure exists for a study of kind {record.kind!r}")
    drawn: Iterable[Drawing] = load_code(study.figure)(record.path)
    return drawn


def draw_figure(
    name: str,
    studies: Folders,
    out: str | Path | None = None,
    *,
    ratio: float | None = None,
    mixed: Folders = (),
) -> list[Path]:
    """Draw a figure or table by its name.

    Args:
        name: one of `FIGURES`: `mft-fig8`, `gmt-tab1`, ...
        studies: the folder of the study, run or training it is drawn from; several where
            the figure takes several, such as one for each domain.
        out: an existing folder to save it in; by default the first study's.
        ratio: for `gmt-tab1` and `gmt-tab2`: the mask ratio at which every method is shown. By
            default each method is shown at its best one, chosen on the data shown.
        mixed: for `mft-tab1` and `mft-tab2`: comparisons that start from a fine-tune on a mixture
            of domains; the table's second half.

    Returns:
        The files: PNG and SVG; of a table CSV and Markdown as well.

    Raises:
        DeltaLensError: no figure has this name, or it does not take several studies or an option.
        RecordError: a folder does not hold the kind of study that the figure is drawn from, or
            nothing is measured yet.
    """
    paths = as_paths(studies)
    drawn = draw_named(name, paths, ratio=ratio, mixed=as_paths(mixed) or None)
    return save_all(drawn, paths[0] if out is None else Path(out))
