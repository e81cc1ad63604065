"""The kinds of studies: what identifies a cell, and the code that summarizes and draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltalens.catalog.plugins import Plugin, find
from deltalens.errors import DeltaLensError

__all__ = [
    "LEARNING_RATE_COLUMN",
    "STUDIES",
    "Study",
    "columns_of",
    "study_in",
    "study_name",
    "study_of",
]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A kind of study."""

    columns: tuple[str, ...]
    """The columns of a cell's setting, in the table's order."""
    figure: str = ""
    """`module:function` that draws a folder: it returns or yields `deltalens.figures.Drawing`s."""
    summary: str = ""
    """`module:function` from a record to its `deltalens.reports.Summary`."""
    axis: str | None = None
    """The column along which trainings of one method differ; empty in a comparison, None if cells
    are not trainings."""
    methods: tuple[str, ...] = ()
    """The methods that it can run, in the order of its table."""
    default: tuple[str, ...] = ()
    """The methods that it runs by default."""
    command: str = ""
    """For a package's kind: `module:name` of the command `deltalens NAME` that makes such studies,
    a typer app or a function that typer can turn into a command."""


_SUMMARIZE_TRAININGS = "deltalens.reports.trainings:summarize_sweep"
STUDIES: Mapping[str, Study] = {
    "drop-study": Study(
        columns=("strategy", "scope", "rate", "seed"),
        figure="deltalens.figures.defaults:draw_drop_study",
        summary="deltalens.reports.drop:summarize_drop_study",
    ),
    "inspect": Study(
        columns=("level", "name"),
        figure="deltalens.figures.defaults:draw_inspection",
        summary="deltalens.reports.inspect:summarize_inspection",
    ),
    "mask-ratio-sweep": Study(
        columns=("method", "mask_ratio", "seed"),
        figure="deltalens.figures.defaults:draw_mask_ratio_sweep",
        summary=_SUMMARIZE_TRAININGS,
        axis="mask_ratio",
        methods=(
            *("ft", "mft", "random-mask-weights", "l1-mask"),
            *("sft", "gmt", "random-mask", "one-off-drop", "hft"),
        ),
    ),
    "data-ratio-sweep": Study(
        columns=("method", "data_ratio", "seed"),
        figure="deltalens.figures.defaults:draw_data_ratio_sweep",
        summary=_SUMMARIZE_TRAININGS,
        axis="data_ratio",
        methods=("sft", "gmt", "random-mask", "hft", "lora", "pissa", "speft", "mft"),
    ),
    "layer-sweep": Study(
        columns=("method", "size", "group", "seed"),
        figure="deltalens.figures.defaults:draw_layer_sweep",
        summary=_SUMMARIZE_TRAININGS,
        axis="group",
        methods=("sft", "mft", "random-mask-weights", "l1-mask"),
    ),
    "layer-sweep-drop": Study(
        columns=("method", "size", "group", "seed"),
        figure="deltalens.figures.defaults:draw_layer_sweep",
        summary="deltalens.reports.layers:summarize_layers",
    ),
    "comparison": Study(
        columns=("method", "seed"),
        figure="deltalens.figures.defaults:draw_comparison",
        summary=_SUMMARIZE_TRAININGS,
        axis="",
        methods=(
            *("base", "lora", "pissa", "lora-continued", "ft", "sft", "lora-on-ft", "speft"),
            *("mft", "random-mask-weights", "l1-mask"),
            *("random-mask-weights-complement", "l1-mask-complement"),
            *("hft", "random-mask", "gmt"),
        ),
    ),
    "density-sweep": Study(
        columns=("method", "rank", "trained", "trained_share", "seed"),
        figure="deltalens.figures.defaults:draw_density_sweep",
        summary=_SUMMARIZE_TRAININGS,
        axis="rank",
        methods=("ft", "sft", "lora", "pissa", "speft"),
    ),
    "mask-sweep": Study(
        columns=("scope", "refresh_every", "seed"),
        figure="deltalens.figures.defaults:draw_mask_sweep",
        summary=_SUMMARIZE_TRAININGS,
        axis="",
        methods=("speft",),
    ),
    "efficiency": Study(
        columns=("method", "repeat"),
        figure="deltalens.figures.defaults:draw_efficiency",
        summary="deltalens.reports.efficiency:summarize_efficiency",
        methods=("sft", "gmt", "random-mask", "hft"),
        default=("sft", "random-mask", "gmt"),
    ),
    "salience": Study(
        columns=("salience", "part", "of"),
        figure="deltalens.figures.defaults:draw_salience",
        summary="deltalens.reports.salience:summarize_salience",
    ),
    "evaluate": Study(
        columns=("model", "training", "step"),
        figure="deltalens.figures.defaults:draw_evaluation",
        summary="deltalens.reports.evaluate:summarize_evaluation",
    ),
    "landscape": Study(
        columns=("a", "b", "mark", "data"),
        figure="deltalens.figures.defaults:draw_landscape",
        summary="deltalens.reports.landscape:summarize_landscape",
    ),
}
"""Every kind of study, by `study_name`."""


LEARNING_RATE_COLUMN = "learning_rate"


def columns_of(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a cell's setting in a study.

    Args:
        spec: of the study, which is of a kind of ours.

    Returns:
        Those of its kind; in a study with a grid of learning rates the rate stands before the seed.
    """
    columns = STUDIES[study_name(spec)].columns
    if "learning_rates" not in spec:
        return columns
    at = columns.index("seed")
    return (*columns[:at], LEARNING_RATE_COLUMN, *columns[at:])


def study_name(spec: Mapping[str, Any]) -> str:
    """Name the kind of a study.

    Args:
        spec: of the study.

    Returns:
        Its kind; a layer sweep without training is a kind of its own, told by its method.
    """
    dropped = spec["kind"] == "layer-sweep" and spec.get("method") == "drop"
    return "layer-sweep-drop" if dropped else str(spec["kind"])


def study_of(spec: Mapping[str, Any]) -> Study | None:
    """Look up the kind of a study.

    Args:
        spec: of the study.

    Returns:
        The kind; None if neither deltalens nor an installed package knows it.

    Raises:
        DeltaLensError: a package's kind cannot be loaded, or is not a `Study`.
    """
    name = study_name(spec)
    if name in STUDIES:
        return STUDIES[name]
    plugin = find("study", name, STUDIES)
    return study_in(plugin) if plugin else None


def study_in(plugin: Plugin) -> Study:
    """Load the kind of study that a package adds.

    Args:
        plugin: the package's entry point.

    Returns:
        The kind.

    Raises:
        DeltaLensError: it cannot be loaded, or is not a `Study`.
    """
    study = plugin.load()
    if not isinstance(study, Study):
        raise DeltaLensError(
            f"{plugin}: {plugin.value} is {type(study).__name__}, not a "
            "deltalens.catalog.studies.Study"
        )
    return study
