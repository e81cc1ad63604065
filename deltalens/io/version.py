"""Which deltalens this is, and which format its records have."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

__all__ = ["FORMAT", "IDENTITY", "version"]

FORMAT = 1
"""The format of study and run folders; a reader refuses any other."""

IDENTITY = 3
"""Of what the identity of a study or a training consists: a folder with another one is read and
drawn, but nobody can know whether the numbers that it lacks would be of the same kind."""


@functools.cache
def version() -> str:
    """The installed version of deltalens; "unknown" when it runs from a bare checkout."""
    try:
        return installed_version("deltalens")
    except PackageNotFoundError:
        return "unknown"
