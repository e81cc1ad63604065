"""Analysis and diagnostics of delta and gradient sparsity in fine-tuned language models.

A function for every command, with the same options, and the classes for your own training loop.
The names below are loaded when first used: importing deltalens loads neither torch nor
transformers nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalens.api.deltas import drop as drop
    from deltalens.api.deltas import inspect as inspect
    from deltalens.api.demos import build_demo as build_demo
    from deltalens.api.drawn import Drawn as Drawn
    from deltalens.api.records import draw_figure as draw_figure
    from deltalens.api.records import list_figures as list_figures
    from deltalens.api.records import list_methods as list_methods
    from deltalens.api.records import load_run as load_run
    from deltalens.api.records import load_study as load_study
    from deltalens.api.records import monitor as monitor
    from deltalens.api.records import plot as plot
    from deltalens.api.records import show_environment as show_environment
    from deltalens.api.reporting import report as report
    from deltalens.api.reproducing import reproduce as reproduce
    from deltalens.api.results import Inspection as Inspection
    from deltalens.api.results import Run as Run
    from deltalens.api.results import Study as Study
    from deltalens.api.results import Training as Training
    from deltalens.api.salience import salience_study as salience_study
    from deltalens.api.studies import drop_study as drop_study
    from deltalens.api.studies import evaluate as evaluate
    from deltalens.api.studies import scan_landscape as scan_landscape
    from deltalens.api.studies import sweep_layers_drop as sweep_layers_drop
    from deltalens.api.sweeps import compare as compare
    from deltalens.api.sweeps import sweep_data_ratio as sweep_data_ratio
    from deltalens.api.sweeps import sweep_density as sweep_density
    from deltalens.api.sweeps import sweep_layers as sweep_layers
    from deltalens.api.sweeps import sweep_mask_ratio as sweep_mask_ratio
    from deltalens.api.sweeps import sweep_masks as sweep_masks
    from deltalens.api.training import efficiency as efficiency
    from deltalens.api.training import train as train
    from deltalens.errors import DeltaLensError as DeltaLensError
    from deltalens.io.checkpoint import open_checkpoint as open_checkpoint
    from deltalens.io.matching import pair as pair
    from deltalens.methods.baselines import HalfFreeze as HalfFreeze
    from deltalens.methods.baselines import RandomMask as RandomMask
    from deltalens.methods.gmt import GradientMask as GradientMask
    from deltalens.methods.mft import MaskTuning as MaskTuning
    from deltalens.methods.salience import Salience as Salience
    from deltalens.methods.salience import salience as salience
    from deltalens.methods.sparse.adapter import SparseAdapter as SparseAdapter
    from deltalens.methods.sparse.adapter import SparseAdapters as SparseAdapters
    from deltalens.methods.sparse.tuning import SparseTuning as SparseTuning
    from deltalens.methods.weight_masks import apply_masks as apply_masks
    from deltalens.probes.gradient import GradientProbe as GradientProbe
    from deltalens.training.methods import Method as Method

_NAMES = {
    "deltalens.api.deltas": ("drop", "inspect"),
    "deltalens.api.demos": ("build_demo",),
    "deltalens.api.drawn": ("Drawn",),
    "deltalens.api.records": (
        *("draw_figure", "list_figures", "list_methods", "load_run", "load_study", "monitor"),
        *("plot", "show_environment"),
    ),
    "deltalens.api.reporting": ("report",),
    "deltalens.api.reproducing": ("reproduce",),
    "deltalens.api.results": ("Inspection", "Run", "Study", "Training"),
    "deltalens.api.salience": ("salience_study",),
    "deltalens.api.studies": ("drop_study", "evaluate", "scan_landscape", "sweep_layers_drop"),
    "deltalens.api.sweeps": (
        *("compare", "sweep_data_ratio", "sweep_density", "sweep_layers", "sweep_mask_ratio"),
        "sweep_masks",
    ),
    "deltalens.api.training": ("efficiency", "train"),
    "deltalens.errors": ("DeltaLensError",),
    "deltalens.io.checkpoint": ("open_checkpoint",),
    "deltalens.io.matching": ("pair",),
    "deltalens.methods.baselines": ("HalfFreeze", "RandomMask"),
    "deltalens.methods.gmt": ("GradientMask",),
    "deltalens.methods.mft": ("MaskTuning",),
    "deltalens.methods.salience": ("Salience", "salience"),
    "deltalens.methods.sparse.adapter": ("SparseAdapter", "SparseAdapters"),
    "deltalens.methods.sparse.tuning": ("SparseTuning",),
    "deltalens.methods.weight_masks": ("apply_masks",),
    "deltalens.probes.gradient": ("GradientProbe",),
    "deltalens.training.methods": ("Method",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("deltalens.io.version").version()
    if name not in _HOME:
        raise AttributeError(f"module 'deltalens' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
