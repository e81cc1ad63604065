"""Fingerprints of checkpoint files: over every byte, hashed in parallel, and cached.

A file is recognized by device, inode, size, and its modification and status-change times; a program
cannot set the latter back. Fingerprints are kept in the user's cache folder.
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

__all__ = [
    "BLOCK",
    "MOST_CACHED",
    "SETTLED_NANOSECONDS",
    "files_beside",
    "fingerprint_of",
    "take_fingerprints",
]

BLOCK = 1 << 22
"""Bytes that a thread reads at a time: 4 MiB, hashed while they are in the processor's cache."""
_THREADS = min(8, os.cpu_count() or 1)
_SMALLEST_CACHED = 4 * BLOCK
"""Bytes: reading a smaller file again is faster than looking it up."""
_BESIDE_WEIGHTS = (
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
"""Files beside the weights that decide what a model computes and how text becomes tokens."""
MOST_CACHED = 4096
"""Files that the cache remembers: the most recent."""
SETTLED_NANOSECONDS = 2_000_000_000
"""Nanoseconds after which a further change is certain to change the file's times: the clocks of
some file systems are that coarse."""


def fingerprint_of(file: Path, advance: Callable[[int], object] = lambda blocks: None) -> str:
    """Fingerprint a file: XXH3-128 over the XXH3-128 digests of its blocks of 4 MiB.

    Args:
        file: a regular file, or a link to one.
        advance: called with the number of blocks that were read.

    Returns:
        32 hexadecimal digits.

    Raises:
        CheckpointError: the file cannot be read, or changed while it was being read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = os.fstat(descriptor)
            if before.st_size >= _SMALLEST_CACHED and (cached := _cached().get(_key(before))):
                return cached
            fingerprint = _hash_blocks(descriptor, before.st_size, advance)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if _key(after) != _key(before):
        raise CheckpointError(
            f"{file}: changed while it was being read; try again once it is completely written"
        )
    if after.st_size >= _SMALLEST_CACHED and _settled(after):
        _remember(_key(after), fingerprint)
    return fingerprint


def files_beside(folder: Path) -> dict[str, Path]:
    """List the files in a model's folder that decide how its weights are used.

    Args:
        folder: the model's folder.

    Returns:
        Configuration, generation settings, tokenizer, chat templates, and code stored with the
        checkpoint: paths by their name relative to `folder`, in alphabetical order.
    """
    files = {file for pattern in _BESIDE_WEIGHTS for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): file for file in sorted(files)}


def take_fingerprints(
    checkpoints: Sequence[Checkpoint],
    stage: Callable[[str, int | None], None],
    at: Callable[[int, int], None],
) -> None:
    """Fingerprint checkpoints in advance, with progress: hundreds of gigabytes take a while.

    Args:
        checkpoints: the checkpoints, already open.
        stage: called once with a title and the number of blocks, unless all files are cached.
        at: called after every block with the numbers of blocks done and in total.

    Raises:
        CheckpointError: a file cannot be read, or changes while it is being read.
    """
    cached, total, done = _cached(), 0, 0
    for file in (file for checkpoint in checkpoints for file in checkpoint.headers):
        with suppress(OSError):
            status = file.stat()
            if status.st_size >= _SMALLEST_CACHED and _key(status) not in cached:
                total += len(_block_starts(status.st_size))

    def advance(blocks: int) -> None:
        nonlocal done
        done += blocks
        if done <= total:
            at(done, total)

    if total:
        stage("reading the weights", total)
    for checkpoint in checkpoints:
        checkpoint.compute_fingerprints(advance)


def _block_starts(size: int) -> Sequence[int]:
    return range(0, size, BLOCK)


def _hash_blocks(descriptor: int, size: int, advance: Callable[[int], object]) -> str:
    advise_sequential(descriptor)
    whole, per_thread = xxhash.xxh3_128(size.to_bytes(8, "little")), threading.local()

    def digest(start: int) -> bytes:
        if not hasattr(per_thread, "buffer"):
            per_thread.buffer = memoryview(bytearray(min(BLOCK, size)))
        block = per_thread.buffer[: size - start]
        filled = 0
        while filled < len(block) and (
            count := read_into(descriptor, block[filled:], start + filled)
        ):
            filled += count
        return xxhash.xxh3_128_digest(block[:filled])

    with ThreadPoolExecutor(_THREADS) as pool:
        for block_digest in pool.map(digest, _block_starts(size)):
            whole.update(block_digest)
            advance(1)
    return whole.hexdigest()


def _key(status: os.stat_result) -> str:
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, numbers))


def _settled(status: os.stat_result) -> bool:
    """Whether a later change is certain to change the file's times: within one tick of the file
    system's clock it might not."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NANOSECONDS


def _cache_file() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "deltalens" / "fingerprints.json"


def _cached() -> dict[str, str]:
    """Cached fingerprints by key; none if the cache is missing or damaged."""
    with suppress(OSError, DeltaLensError):
        files = parse_sealed(_cache_file(), read_plain(_cache_file())).get("files")
        if isinstance(files, dict):
            return files
    return {}


def _remember(key: str, fingerprint: str) -> None:
    """Cache a fingerprint if the cache is writable; with a read-only home, only time is lost."""
    files = [*_cached().items(), (key, fingerprint)][-MOST_CACHED:]
    with suppress(OSError, DeltaLensError):
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(_cache_file(), json.dumps(sealed({"files": dict(files)})).encode())
