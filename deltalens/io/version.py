"""Which deltalens this is, and which format its records have."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

__all__ = ["FORMAT", "FORMATS", "IDENTITY", "has_checksums", "version"]

FORMAT = 2
"""The format of the records that are written: each has a checksum."""

FORMATS = (1, FORMAT)
"""Those that are read; a reader refuses any other. The first had no checksums."""

IDENTITY = 3
"""Of what the identity of a study or a training consists: a folder with another one is read and
drawn, but nobody can know whether the numbers that it lacks would be of the same kind."""


def has_checksums(format: int) -> bool:
    """Whether records of a format have checksums."""
    return format > 1


@functools.cache
def version() -> str:
    """The installed version of deltalens; "unknown" when it runs from a bare checkout."""
    try:
        return installed_version("deltalens")
    except PackageNotFoundError:
        return "unknown"
