"""Whether a worker on another machine sees the same files: a fingerprint that costs three blocks of
each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from deltalens.errors import DeltaLensError
from deltalens.io.checksum import checksum
from deltalens.io.records import specification_of

__all__ = ["glance", "glances", "unseen"]

_BLOCK = 1 << 16
"""Bytes that are compared at three places of each file: in its header shards differ from each
other, further on from the same shard of another training."""


def glance(path: Path) -> str:
    """Fingerprint a file by its size and three blocks, and a study's folder by its specification.

    Args:
        path: the file or folder.

    Returns:
        A text that is equal for equal files.

    Raises:
        DeltaLensError: there is no such file, or no such study.
    """
    if path.is_dir():
        return checksum(json.dumps(specification_of(path), sort_keys=True).encode())
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            blocks = []
            for start in (0, size // 2, max(0, size - _BLOCK)):
                stream.seek(start)
                blocks.append(stream.read(_BLOCK))
            return f"{size} {checksum(b''.join(blocks))}"
    except OSError as error:
        raise DeltaLensError(f"{path}: cannot be read: {error.strerror}") from error


def glances(paths: Iterable[Path]) -> dict[str, str]:
    """Fingerprint several paths.

    Args:
        paths: of files, and of folders of studies.

    Returns:
        Absolute path -> fingerprint.

    Raises:
        DeltaLensError: see `glance`.
    """
    return {str(path): glance(path) for path in sorted({path.absolute() for path in paths})}


def unseen(expected: Mapping[str, str]) -> list[str]:
    """Look, on a worker's machine, for what the study's process sees.

    Args:
        expected: absolute path -> fingerprint.

    Returns:
        A phrase for each path that is missing or different here.
    """
    faults = []
    for path, fingerprint in expected.items():
        try:
            if glance(Path(path)) != fingerprint:
                faults.append(f"{path}: is another file there")
        except DeltaLensError as error:
            faults.append(str(error))
    return faults
