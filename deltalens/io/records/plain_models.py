"""Plain models in a training's folder: complete on the disk before they have their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltalens.io.files import copy_beside, sync_folder
from deltalens.io.folders import remove
from deltalens.io.platform import sync
from deltalens.io.temporary import is_temporary, temporary_name

__all__ = ["add_tokenizer", "kept_checkpoint", "remove_unfinished", "sync_all"]

_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map*",
    "chat_template*",
    "added_*",
)


def add_tokenizer(model: Path, source: Path) -> None:
    """Copy the tokenizer and the generation settings of the model that was trained.

    Args:
        model: the folder of the new model.
        source: that of the model that was trained.

    Raises:
        DeltaLensError: a file cannot be copied.
        OSError: likewise.
    """
    for pattern in (*_TOKENIZER_FILES, "generation_config.json"):
        for file in source.glob(pattern):
            copy_beside(file, source, model / file.name)


def sync_all(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk.

    Args:
        path: the file or folder.

    Raises:
        OSError: it cannot be read, or not be written to the disk.
    """
    if path.is_dir():
        for part in path.iterdir():
            sync_all(part)
        sync_folder(path)
        return
    with path.open("rb") as stream:
        sync(stream.fileno())


@contextmanager
def kept_checkpoint(training: Path, step: int, source: Path) -> Iterator[Path]:
    """Write the model after a step as `checkpoint-STEP`, in place of one of that name.

    Args:
        training: the training's folder.
        step: the optimizer steps taken so far.
        source: the folder of the model that is trained, for the tokenizer.

    Yields:
        A temporary folder for the model's files. At the end of the block it is completed and
        renamed; after an error it is removed.

    Raises:
        DeltaLensError: a file cannot be copied or removed.
        OSError: the disk is full, or the folder is not writable.
    """
    checkpoint = training / f"checkpoint-{step}"
    made, replaced = temporary_name(checkpoint), temporary_name(checkpoint)
    try:
        made.mkdir()
        yield made
        add_tokenizer(made, source)
        sync_all(made)
        if os.path.lexists(checkpoint):  # A call that was killed had come further than its resume.
            os.replace(checkpoint, replaced)
        os.replace(made, checkpoint)
        sync_folder(training)
    finally:
        for folder in (made, replaced):
            remove(folder)


def remove_unfinished(training: Path) -> None:
    """Remove what processes that were killed have left of the checkpoints that they kept.

    Args:
        training: the training's folder.

    Raises:
        RecordError: it may not be removed.
    """
    for path in training.glob(".checkpoint-*"):
        if is_temporary(path.name):
            remove(path)
