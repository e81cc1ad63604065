"""Every figure and table that can be drawn by name. Twins share one way of drawing: Figure 8 of
MFT is Figure 4 for another domain, and Table 2 is Table 1 for another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from deltalens.catalog.plugins import load_code
from deltalens.errors import DeltaLensError, similar_names
from deltalens.figures.drawing import Drawing

__all__ = ["FIGURES", "FigureEntry", "Folders", "as_paths", "draw_named", "figure_entry"]

Folders = str | Path | Sequence[str | Path]
"""One folder, or several."""


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
    source: str
    """The kind of study it is drawn from; or `run` (of a probe), or `training`."""
    code: str
    """`module:function` that draws it: (folders, entry, **options) -> list of `Drawing`."""
    several: bool = False
    """Whether several studies can share the figure, such as one for each domain."""
    options: tuple[str, ...] = ()
    """Keyword arguments that it takes, such as `ratio`."""
    same_as: str = ""
    """The name of its twin, if it is drawn exactly like another one."""

    @property
    def file_name(self) -> str:
        """Name of its files, without their ending: `mft_fig4`."""
        return self.name.replace("-", "_")

    @property
    def title(self) -> str:
        """Paper, number and what it shows."""
        numbered = f"{self.paper}, {self.number}" if self.number else self.paper
        return f"{numbered}: {self.shows}" if numbered else self.shows


def _code(module: str) -> str:
    return f"deltalens.figures.{module}:draw"


def _twin(entry: FigureEntry, name: str, number: str, shows: str = "") -> FigureEntry:
    """The same figure under another number."""
    shows = shows or entry.shows
    return replace(entry, name=name, number=number, shows=shows, same_as=entry.name)


def _gmt(name: str, number: str, shows: str, source: str, **more: Any) -> FigureEntry:
    code = _code(name.replace("-", "_"))
    return FigureEntry(
        name=name, paper="GMT", number=number, shows=shows, source=source, code=code, **more
    )


def _mft(name: str, number: str, shows: str, source: str, **more: Any) -> FigureEntry:
    entry = _gmt(name, number, shows, source, several=True, **more)
    return replace(entry, paper="MFT")


_MASK_RATIO, _DATA_RATIO = "mask-ratio-sweep", "data-ratio-sweep"
_MFT_FIG4 = _mft("mft-fig4", "Figure 4", "performance over the mask ratio: coding", _MASK_RATIO)
_MFT_FIG5 = _mft("mft-fig5", "Figure 5", "performance over the amount of data: maths", _DATA_RATIO)
_MFT_FIG6 = _mft("mft-fig6", "Figure 6", "loss landscape of each domain", "landscape")
_MFT_TAB1 = _mft(
    "mft-tab1",
    "Table 1",
    "methods on the data of their domain",
    "comparison",
    options=("mixed",),
)
_MFT_TAB5 = _mft("mft-tab5", "Table 5", "every domain's models on every data set", "comparison")


def _speft(name: str, number: str, shows: str, source: str) -> FigureEntry:
    return replace(_mft(name, number, shows, source), paper="SPEFT")


_SPEFT_TAB1 = _speft(
    "speft-tab1", "Table 1", "salience metrics, LoRA and PiSSA on several tasks", "comparison"
)
_SPEFT_TAB7 = _speft("speft-tab7", "Table 7", "hyperparameters on maths", "comparison")

_ENTRIES = (
    _gmt("gmt-fig2", "Figure 2", "performance over the mask ratio", _MASK_RATIO),
    _gmt("gmt-fig3", "Figure 3", "performance over the drop rate", "drop-study"),
    _gmt("gmt-tab1", "Table 1", "methods on one task", _MASK_RATIO, options=("ratio",)),
    _gmt("gmt-tab2", "Table 2", "methods on several tasks", _MASK_RATIO, options=("ratio",)),
    _gmt("gmt-tab3", "Table 3", "training speed", "efficiency"),
    _gmt("gmt-tab4", "Table 4", "best mask ratios", _MASK_RATIO),
    _gmt(
        "gmt-data",
        "",
        "masked gradients beside plain fine-tuning on less data",
        _DATA_RATIO,
        several=True,
    ),
    _mft("mft-fig2", "Figure 2", "performance over the training steps", "comparison"),
    _mft("mft-fig3", "Figure 3", "performance by masked blocks: small groups", "layer-sweep"),
    _MFT_FIG4,
    _MFT_FIG5,
    _MFT_FIG6,
    _mft("mft-fig7", "Figure 7", "performance by masked blocks: large groups", "layer-sweep"),
    _twin(_MFT_FIG4, "mft-fig8", "Figure 8", "performance over the mask ratio: maths"),
    _twin(_MFT_FIG5, "mft-fig9", "Figure 9", "performance over the amount of data: coding"),
    _twin(_MFT_FIG6, "mft-fig10", "Figure 10", "loss landscape of the coding domain"),
    _MFT_TAB1,
    _twin(_MFT_TAB1, "mft-tab2", "Table 2"),
    _mft("mft-tab3", "Table 3", "a global threshold and a local ratio", "comparison"),
    _MFT_TAB5,
    _twin(_MFT_TAB5, "mft-tab6", "Table 6"),
    _speft("speft-fig2", "Figure 2", "performance over the trained share", "density-sweep"),
    _SPEFT_TAB1,
    _twin(_SPEFT_TAB1, "speft-tab2", "Table 2", "salience metrics on larger models"),
    _twin(_SPEFT_TAB1, "speft-tab3", "Table 3", "salience metrics on maths"),
    _speft("speft-tab4", "Table 4", "static or dynamic masks, global or local", "mask-sweep"),
    _twin(_SPEFT_TAB7, "speft-tab5", "Table 5", "hyperparameters on several tasks"),
    _twin(_SPEFT_TAB7, "speft-tab6", "Table 6", "hyperparameters on instructions"),
    _SPEFT_TAB7,
    _twin(_SPEFT_TAB7, "speft-tab8", "Table 8", "hyperparameters on coding"),
    *(_twin(_SPEFT_TAB1, f"speft-tab{n}", f"Table {n}") for n in (9, 10, 11)),
    _twin(_SPEFT_TAB1, "speft-tab12", "Table 12", "salience metrics on coding"),
    FigureEntry(
        name="anatomy",
        shows="distribution and energy of a delta, by layer",
        source="inspect",
        code=_code("anatomy"),
    ),
    FigureEntry(
        name="salience-agreement",
        shows="overlap of the masks of salience metrics, and with a fine-tune's changes",
        source="salience",
        code=_code("salience_agreement"),
    ),
    FigureEntry(
        name="salience-budget",
        shows="density of each salience metric's mask, by block and kind of layer",
        source="salience",
        code=_code("salience_budget"),
    ),
    FigureEntry(
        name="salience-samples",
        shows="overlap of salience masks from parts of the calibration data",
        source="salience",
        code=_code("salience_samples"),
    ),
    FigureEntry(
        name="landscape",
        shows="a loss landscape as contours and as a surface, or along a line",
        source="landscape",
        code=_code("landscape"),
        options=("first_only",),
    ),
    FigureEntry(
        name="evaluation",
        shows="scores of several models, over the steps of their trainings or by name",
        source="evaluate",
        code=_code("evaluation"),
    ),
    FigureEntry(
        name="gradients",
        shows="gradients, masks and updates that a probe logged, over the steps",
        source="run",
        code=_code("gradient_run"),
    ),
    FigureEntry(
        name="removed-shares",
        shows="share of each layer's weights that a training removed",
        source="training",
        code=_code("removed_shares"),
    ),
)
FIGURES: Mapping[str, FigureEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every figure and table, by name."""


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
    raise DeltaLensError(f"no figure is called {name!r}; {hint}")


def draw_named(name: str, folders: Folders, **options: Any) -> list[Drawing]:
    """Draw a figure or table without saving it.

    Args:
        name: in `FIGURES`.
        folders: the study's folder, or several where the figure takes several.
        options: what the figure takes, as `draw_figure` describes it; None is ignored.

    Returns:
        The figure; a landscape and a probe's run are drawn as several.

    Raises:
        DeltaLensError: no figure has this name, or it does not take several studies or an option.
        RecordError: a folder does not hold the kind of study that the figure is drawn from, or
            nothing is measured yet.
    """
    entry = figure_entry(name)
    paths = as_paths(folders)
    if not paths:
        raise DeltaLensError(f"{name}: name a folder to draw it from")
    if len(paths) > 1 and not entry.several:
        raise DeltaLensError(f"{name} is drawn from a single folder; {len(paths)} were named")
    chosen = {key: value for key, value in options.items() if value is not None}
    for key in chosen:
        if key not in entry.options:
            raise DeltaLensError(f"{name} takes no {key}")
    drawings: list[Drawing] = load_code(entry.code)(paths, entry, **chosen)
    return drawings
