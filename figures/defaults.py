"""Which figures and tables a study's kind calls for, when none is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from deltalens.catalog.methods import facts_of
from deltalens.catalog.variants import is_sparse
from deltalens.figures.drawing import Drawing
from deltalens.figures.mft_layers import group_sizes
from deltalens.figures.mft_studies import load
from deltalens.figures.registry import draw_named
from deltalens.figures.sweep_tables import load_sweep
from deltalens.io.records import StudyRecord, load_study, load_training

__all__ = [
    "draw_comparison",
    "draw_data_ratio_sweep",
    "draw_density_sweep",
    "draw_drop_study",
    "draw_efficiency",
    "draw_evaluation",
    "draw_inspection",
    "draw_landscape",
    "draw_layer_sweep",
    "draw_mask_ratio_sweep",
    "draw_mask_sweep",
    "draw_salience",
    "draw_training",
]


def draw_drop_study(folder: Path) -> list[Drawing]:
    """Draw GMT's Figure 3.

    Args:
        folder: of a drop study.

    Returns:
        The figure.
    """
    return draw_named("gmt-fig3", folder)


def draw_inspection(folder: Path) -> list[Drawing]:
    """Draw the anatomy of a delta.

    Args:
        folder: of an inspection.

    Returns:
        The figure.
    """
    return draw_named("anatomy", folder)


def draw_efficiency(folder: Path) -> list[Drawing]:
    """Draw GMT's Table 3.

    Args:
        folder: of an efficiency study.

    Returns:
        The table.
    """
    return draw_named("gmt-tab3", folder)


def draw_evaluation(folder: Path) -> list[Drawing]:
    """Draw the scores of several models.

    Args:
        folder: of an evaluation.

    Returns:
        The figure.
    """
    return draw_named("evaluation", folder)


def draw_landscape(folder: Path) -> list[Drawing]:
    """Draw a loss landscape.

    Args:
        folder: of a landscape.

    Returns:
        Contours and a surface, or lines.
    """
    return draw_named("landscape", folder)


def draw_salience(folder: Path) -> Iterable[Drawing]:
    """Draw where each metric puts its budget; how far metrics agree, if there are several, and what
    parts of the calibration data find, as far as that is measured.

    Args:
        folder: of a salience study.

    Returns:
        The figures.
    """
    parts = {*load_study(folder).cells["part"]}
    suits = {
        "salience-budget": "budget" in parts,
        "salience-agreement": bool(parts & {"agreement", "fine-tune"}),
        "salience-samples": "sample" in parts,
    }
    return _draw_all([name for name, suited in suits.items() if suited], folder)


def draw_mask_ratio_sweep(folder: Path) -> Iterable[Drawing]:
    """Draw MFT's Figure 4 if weights are removed; else GMT's Figure 2 and its Tables 1 and 4, and
    Table 2 if several data sets share a metric.

    Args:
        folder: of a mask-ratio sweep.

    Returns:
        The figures and tables.
    """
    if _masks(_methods(load_study(folder)), "weights"):
        return draw_named("mft-fig4", folder)
    several = ["gmt-tab2"] if load_sweep(folder).shared_metrics else []
    return _draw_all(["gmt-fig2", "gmt-tab1", *several, "gmt-tab4"], folder)


def draw_data_ratio_sweep(folder: Path) -> list[Drawing]:
    """Draw MFT's Figure 5; if gradients are masked, the comparison that GMT leaves open.

    Args:
        folder: of a data-ratio sweep.

    Returns:
        The figure.
    """
    spec = load_study(folder).spec.get("methods", ())
    return draw_named("gmt-data" if _masks(spec, "gradients") else "mft-fig5", folder)


def draw_layer_sweep(folder: Path) -> Iterable[Drawing]:
    """Draw MFT's Figure 3 if the sweep has small groups of blocks, and Figure 7 if it has large
    ones.

    Args:
        folder: of a layer sweep, with or without training.

    Returns:
        The figures.
    """
    small, large = group_sizes([folder])
    names = ["mft-fig3"] * bool(small or not large) + ["mft-fig7"] * bool(large)
    return _draw_all(names, folder)


def draw_comparison(folder: Path) -> Iterable[Drawing]:
    """Draw SPEFT's Tables 1 and 7 if a method is SPEFT. Else MFT's Table 1; Figure 2 if the methods
    were measured during training, Table 3 if MFT has a threshold, and Table 5 if there are several
    data sets.

    Args:
        folder: of a comparison.

    Returns:
        The figures and tables.
    """
    study = load(folder, "comparison")
    if any(map(is_sparse, study.record.cells["method"])):
        return _draw_all(["speft-tab1", "speft-tab7"], folder)
    suits = {
        "mft-tab1": True,
        "mft-fig2": study.frame["step"].notna().any(),
        "mft-tab3": study.record.setting("threshold", "mft") is not None,
        "mft-tab5": len(study.sets) > 1,
    }
    return _draw_all([name for name, suited in suits.items() if suited], folder)


def draw_training(folder: Path) -> Iterable[Drawing]:
    """Draw the curves of a training; and the share of each layer that it removed, if that is
    learned, or if no step was logged.

    Args:
        folder: of a training.

    Returns:
        The figures.
    """
    training = load_training(folder)
    logged = bool(training.logged())
    learned = training.spec.get("threshold") is not None or not logged
    suits = {
        "training": logged or not training.facts.get("removed"),
        "removed-shares": learned and bool(training.facts.get("removed")),
    }
    return _draw_all([name for name, suited in suits.items() if suited], folder)


def draw_mask_sweep(folder: Path) -> list[Drawing]:
    """Draw SPEFT's Table 4.

    Args:
        folder: of a sweep over masks.

    Returns:
        The table.
    """
    return draw_named("speft-tab4", folder)


def draw_density_sweep(folder: Path) -> list[Drawing]:
    """Draw SPEFT's Figure 2.

    Args:
        folder: of a density sweep.

    Returns:
        The figure.
    """
    return draw_named("speft-fig2", folder)


def _draw_all(names: list[str], folder: Path) -> Iterator[Drawing]:
    for name in names:
        yield from draw_named(name, folder)


def _methods(record: StudyRecord) -> set[str]:
    return {*record.spec.get("methods", ()), *record.cells["method"]}


def _masks(methods: Iterable[str], what: str) -> bool:
    """Whether one of the methods masks gradients, or weights."""
    facts = [facts_of(method) for method in methods]
    return any(each is not None and each.masks == what for each in facts)
