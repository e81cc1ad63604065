"""Drawing figures and tables by name, after checking what they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalens.catalog.plugins import load_code
from deltalens.errors import DeltaLensError, similar_names
from deltalens.figures.catalog import FIGURES
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.fitness import check_fitness
from deltalens.figures.style import drawn_for, drawn_now
from deltalens.figures.titles import title_of

__all__ = ["Folders", "as_paths", "draw_named", "figure_entry"]

Folders = str | Path | Sequence[str | Path]
"""One folder, or several."""


def as_paths(folders: Folders) -> list[Path]:
    """Read one folder or several as a list.

    Args:
        folders: one, or several.

    Returns:
        Their paths.
    """
    return [Path(folders)] if isinstance(folders, str | Path) else [*map(Path, folders)]


def figure_entry(name: str) -> FigureEntry:
    """Look up a figure or table.

    Args:
        name: such as `mft-fig4`.

    Returns:
        What is known of it.

    Raises:
        DeltaLensError: no figure has this name.
    """
    if name in FIGURES:
        return FIGURES[name]
    similar = similar_names(name, FIGURES, 3, 0.6)
    hint = f"choose from {', '.join(FIGURES)}"
    if similar:
        hint = f"did you mean {' or '.join(similar)}?"
    raise DeltaLensError(f"no figure is called {name!r}; {hint} (`deltalens figures` lists them)")


def draw_named(name: str, folders: Folders = (), **options: Any) -> list[Drawing]:
    """Draw a figure or table without saving it.

    Args:
        name: in `FIGURES`.
        folders: the study's folder, or several where the figure takes several; none of a figure
            that is drawn from nothing.
        options: what the figure takes, as `draw_figure` describes it; None is ignored.

    Returns:
        The figure; a landscape and a probe's run are drawn as several.

    Raises:
        DeltaLensError: no figure has this name, or it does not take several studies or an option.
        RecordError: a folder does not hold the kind of study that the figure is drawn from, nothing
            is measured yet, or several were written by versions that measure differently.
    """
    entry = figure_entry(name)
    paths = as_paths(folders)
    chosen = {key: value for key, value in options.items() if value is not None}
    for key in chosen:
        if key not in entry.options:
            raise DeltaLensError(f"{name} takes no {key}")
    check_fitness(entry, paths, chosen.get("mixed", ()))
    title = title_of(paths)
    with drawn_for(subject=title):
        drawings: list[Drawing] = load_code(entry.code)(paths, entry, **chosen)
    for drawing in drawings:
        # A table has it already.
        if title and drawn_now().titles and not drawing.tables:
            drawing.add_title(title)
    return drawings
