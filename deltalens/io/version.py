"""The version of deltalens, and the versions of its record formats."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

__all__ = ["FORMAT", "FORMATS", "IDENTITY", "has_checksums", "version"]

FORMAT = 2
"""The format in which records are written. Each record has a checksum."""

FORMATS = (1, FORMAT)
"""The formats that can be read; any other is refused. Records of format 1 have no checksums."""

IDENTITY = 3
"""Version of what the identity of a study or a training consists of. A folder with another version
can be read and drawn, but not resumed: whether missing cells would be comparable is unknown."""


def has_checksums(format: int) -> bool:
    """Tell whether records of a format have checksums.

    Returns:
        False for format 1 only.
    """
    return format > 1


@functools.cache
def version() -> str:
    """Get the version of deltalens.

    Returns:
        The installed version; "unknown" in a checkout that is not installed.
    """
    try:
        return installed_version("deltalens")
    except PackageNotFoundError:
        return "unknown"
