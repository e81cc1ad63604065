"""Analysis and diagnostics of delta and gradient sparsity in fine-tuned language models.

The names below are loaded when first used: importing deltalens loads neither torch nor
transformers nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltalens.errors import DeltaLensError as DeltaLensError
    from deltalens.io.checkpoint import open_checkpoint as open_checkpoint
    from deltalens.io.matching import pair as pair
    from deltalens.io.records import load_run as load_run
    from deltalens.io.records import load_study as load_study
    from deltalens.methods.baselines import HalfFreeze as HalfFreeze
    from deltalens.methods.baselines import RandomMask as RandomMask
    from deltalens.methods.gmt import GradientMask as GradientMask
    from deltalens.methods.mft import MaskTuning as MaskTuning
    from deltalens.methods.weight_masks import apply_masks as apply_masks
    from deltalens.probes.gradient import GradientProbe as GradientProbe
    from deltalens.studies.drop import drop as drop
    from deltalens.studies.drop_study import drop_study as drop_study
    from deltalens.studies.inspect import inspect as inspect
    from deltalens.studies.landscape.scan import scan_landscape as scan_landscape

_HOME = {
    "DeltaLensError": "deltalens.errors",
    "apply_masks": "deltalens.methods.weight_masks",
    "open_checkpoint": "deltalens.io.checkpoint",
    "pair": "deltalens.io.matching",
    "drop": "deltalens.studies.drop",
    "drop_study": "deltalens.studies.drop_study",
    "inspect": "deltalens.studies.inspect",
    "GradientMask": "deltalens.methods.gmt",
    "GradientProbe": "deltalens.probes.gradient",
    "HalfFreeze": "deltalens.methods.baselines",
    "MaskTuning": "deltalens.methods.mft",
    "RandomMask": "deltalens.methods.baselines",
    "load_run": "deltalens.io.records",
    "load_study": "deltalens.io.records",
    "scan_landscape": "deltalens.studies.landscape.scan",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("deltalens.io.version").version()
    if name not in _HOME:
        raise AttributeError(f"module 'deltalens' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
