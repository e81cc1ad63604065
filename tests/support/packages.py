"""Packages that are installed for a test: a module, and what pip would write beside it."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path

import pytest

__all__ = ["install"]


def install(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    group: str,
    points: dict[str, str],
    code: str,
    version: str = "1.0",
) -> None:
    """Install the package `extra`, whose module is `extra`, for this process and its children.

    Args:
        folder: where it lies.
        patch: forgets it after the test.
        group: of its entry points.
        points: name -> object, as `extra:thing`.
        code: of the module.
        version: of the package.
    """
    info = folder / "extra.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (folder / "extra.py").write_text(textwrap.dedent(code))
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: extra\nVersion: {version}\n")
    patch.syspath_prepend(str(folder))
    patch.setenv("PYTHONPATH", str(folder), prepend=":")
    patch.delitem(__import__("sys").modules, "extra", raising=False)
    importlib.invalidate_caches()
