"""A demo made on the spot: a base model, a fine-tune of it, and rows to measure them on.

Importing this package loads neither torch nor transformers; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltalens.demo.paths import DemoPaths
from deltalens.demo.recipe import Recipe

if TYPE_CHECKING:
    from deltalens.demo.build import build_demo

__all__ = ["DemoPaths", "Recipe", "build_demo"]


def __getattr__(name: str) -> object:
    if name == "build_demo":
        from deltalens.demo.build import build_demo

        return build_demo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
