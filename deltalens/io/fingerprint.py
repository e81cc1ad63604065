"""Fingerprints of checkpoints' files: of every byte, at the speed of memory, and none read twice.

A file is known again by device, inode, size and both its times; the one of its inode cannot be set
back. What is known is kept in the user's cache.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from deltalens.errors import CheckpointError, DeltaLensError
from deltalens.io.checksum import parse_sealed, sealed
from deltalens.io.files import read_plain, write_whole
from deltalens.io.platform import advise_sequential, read_into

if TYPE_CHECKING:
    from deltalens.io.checkpoint import Checkpoint

__all__ = ["BLOCK", "files_beside", "fingerprint_of", "take_fingerprints"]

BLOCK = 1 << 22
"""Bytes that one thread reads at a time: 4 MiB, hashed while they are in its cache."""
_THREADS = min(8, os.cpu_count() or 1)
_WORTH = 4 * BLOCK
"""A smaller file is read again sooner than it is looked up."""
_DECIDING = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges*",
    "added_tokens*",
    "special_tokens_map*",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "*.py",
)
"""Files beside the weights that decide what a model computes, and of which text."""
_KEPT = 4096
"""Files that the cache remembers: the latest."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a change is sure to give a file another time: clocks of file systems are
as coarse as that."""


def fingerprint_of(file: Path, advance: Callable[[int], object] = lambda blocks: None) -> str:
    """XXH3-128 of a file's blocks of 4 MiB, and then of their digests: 32 hexadecimal digits.

    Args:
        file: a plain file, or what a link leads to.
        advance: told of every block that was read.

    Raises:
        CheckpointError: it cannot be read, or changed while it was.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            if before.st_size >= _WORTH and (known := _known().get(_key(before))):
                return known
            found = _read(descriptor, before.st_size, advance)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if _key(after) != _key(before):
        raise CheckpointError(f"{file}: was changed while it was read; wait until it is written")
    if after.st_size >= _WORTH and _settled(after):
        _remember(_key(after), found)
    return found


def files_beside(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that say how to use its weights, by name: configuration, how it
    generates, tokenizer, chat templates, code of its own."""
    found = {file for pattern in _DECIDING for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): file for file in sorted(found)}


def take_fingerprints(
    checkpoints: Sequence[Checkpoint],
    stage: Callable[[str, int | None], None],
    at: Callable[[int, int], None],
) -> None:
    """Take the fingerprints of checkpoints before they are asked for: of hundreds of gigabytes that
    takes a while.

    Args:
        checkpoints: opened.
        stage: told that it begins, where that is worth a word, and of how many blocks.
        at: told of every block: how many are done, and of how many.
    """
    known, total, done = _known(), 0, 0
    for file in (file for one in checkpoints for file in one.headers):
        with suppress(OSError):
            status = file.stat()
            if status.st_size >= _WORTH and _key(status) not in known:
                total += len(_starts(status.st_size))

    def advance(blocks: int) -> None:
        nonlocal done
        done += blocks
        if done <= total:
            at(done, total)

    if total:
        stage("reading the weights", total)
    for one in checkpoints:
        one.read_through(advance)


def _starts(size: int) -> Sequence[int]:
    return range(0, size, BLOCK)


def _read(descriptor: int, size: int, advance: Callable[[int], object]) -> str:
    advise_sequential(descriptor)
    whole, own = xxhash.xxh3_128(size.to_bytes(8, "little")), threading.local()

    def digest(start: int) -> bytes:
        if not hasattr(own, "buffer"):
            own.buffer = memoryview(bytearray(min(BLOCK, size)))
        block = own.buffer[: size - start]
        at = 0
        while at < len(block) and (count := read_into(descriptor, block[at:], start + at)):
            at += count
        return xxhash.xxh3_128_digest(block[:at])

    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(digest, _starts(size)):
            whole.update(found)
            advance(1)
    return whole.hexdigest()


def _key(status: os.stat_result) -> str:
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, numbers))


def _settled(status: os.stat_result) -> bool:
    """Whether a later change would show: within a tick of the file system's clock it might not."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "deltalens" / "fingerprints.json"


def _known() -> dict[str, str]:
    """What the cache remembers; nothing where there is none, or it is damaged."""
    with suppress(OSError, DeltaLensError):
        files = parse_sealed(_cache(), read_plain(_cache())).get("files")
        if isinstance(files, dict):
            return files
    return {}


def _remember(key: str, found: str) -> None:
    """Keep a fingerprint, where there is a place for it: a read-only home costs time only."""
    files = [*_known().items(), (key, found)][-_KEPT:]
    with suppress(OSError, DeltaLensError):
        _cache().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_cache(), json.dumps(sealed({"files": dict(files)})).encode())
