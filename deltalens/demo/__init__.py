"""A demo made on the spot: a base model, a fine-tune of it, rows to measure them on, and a
probe's run.

Importing this package loads neither torch nor transformers; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltalens.demo.paths import DemoPaths
from deltalens.demo.recipe import Recipe

if TYPE_CHECKING:
    from deltalens.demo.build import build_base, build_demo, build_probe_run

__all__ = ["DemoPaths", "Recipe", "build_base", "build_demo", "build_probe_run"]


def __getattr__(name: str) -> object:
    if name in ("build_base", "build_demo", "build_probe_run"):
        from deltalens.demo import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
