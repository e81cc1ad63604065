"""The folder of a training: specification, metrics, checkpoints, and the result.

When the training is done, the folder is an ordinary Hugging Face checkpoint; until then it has no
`config.json`, so that nothing mistakes it for a model. One process at a time writes to it. The lock
is removed at the end with everything else that only the training needs.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.files import discard, sync_folder
from deltalens.io.folders import check_new_folder, remove
from deltalens.io.locks import LOCK, is_remains
from deltalens.io.plain_json import check_names
from deltalens.io.records.checkpoints import (
    SealedCheckpoint,
    last_whole,
    remove_checkpoints,
    seal,
)
from deltalens.io.records.folder import RecordFolder
from deltalens.io.records.metrics import METRICS, Metrics
from deltalens.io.records.plain_models import (
    add_tokenizer,
    kept_checkpoint,
    remove_unfinished,
    sync_all,
)
from deltalens.io.records.training_record import CONFIG, RUN, TRAINING

__all__ = ["ADAPTER", "MASKS", "TrainingFolder"]

CHECKPOINTS = "checkpoints"
MASKS = "masks.safetensors"
"""The file that says which weights a method removed; `deltalens.apply_masks` reads it."""
ADAPTER = "adapter"
"""The folder of a LoRA adapter, before it was merged; peft reads it."""
_MODEL = ".model"
"""The folder in which the result is written before its files are moved, `config.json` last."""


class TrainingFolder(RecordFolder):
    """A training's folder that is open for writing, by one process at a time, until `close`.

    Args:
        path: the folder: a new one, or one with the same training if that is resumed.
        spec: the identity: everything that decides the result, as JSON values.
        inputs: paths that are read.
        resume: resume the training in the folder.

    Attributes:
        notes: what a user should know about how the training was resumed.
        metrics: the file of metrics.
        last: the checkpoint from which the training is resumed; None: from the start.
        taken: steps taken by this process.
        resumed: whether a training is resumed.

    Raises:
        RecordError: the folder contains something else, another training (the fields that differ
            are listed) or a finished one; another process is writing to it; all checkpoints are
            damaged; or a name in it, or its own, is not valid Unicode.
    """

    manifest = TRAINING

    def __init__(
        self, path: Path, spec: Mapping[str, Any], inputs: Sequence[Path], resume: bool
    ) -> None:
        check_names(str(path))
        super().__init__(path, spec)
        self.notes: list[str] = []
        self.metrics = Metrics(path)
        self.last: SealedCheckpoint | None = None
        self.taken = 0
        self.resumed = self._resume_requested = resume
        self._inputs = list(inputs)
        self._created_paths: list[Path] = []
        """Files and folders of this process, in addition to those that every training has."""
        self._was_locked = os.path.lexists(path / LOCK)
        self._open()

    def _is_new(self) -> bool:
        if self._resume_requested and not self.path.is_dir():
            raise RecordError(f"{self.path}: no training to resume (no such folder)")
        self.resumed = self._resume_requested and not self._was_killed_at_start()
        exists = os.path.lexists(self.path / TRAINING.name)
        if self.resumed and not exists:
            raise RecordError(f"{self.path}: no training to resume (no {TRAINING.name})")
        if self.resumed:
            return False
        if exists:
            raise RecordError(
                f"{self.path}: already contains a training; set `resume` to resume it"
            )
        check_new_folder(self.path, self._inputs, locked=True)
        return True

    def _was_killed_at_start(self) -> bool:
        return self._was_locked and all(is_remains(path.name) for path in self.path.iterdir())

    def _start(self) -> None:
        self.write_manifest()
        self.checkpoints.mkdir(exist_ok=True)

    def _resume(self) -> None:
        manifest = TRAINING.read(self.path)
        self.facts = dict(manifest["facts"])
        self._unite(manifest)
        self._refuse_links()
        self._tidy_runs()
        self._clear_model()
        remove_unfinished(self.path)
        if self.finished:
            remove_checkpoints(self.checkpoints)
            raise RecordError(f"{self.path}: this training is already finished")
        self.checkpoints.mkdir(exist_ok=True)
        self.last, faults = last_whole(self.checkpoints)
        if self.last is None:
            self.metrics.clear()
            self._note(f"{self.path}: no checkpoint to resume from; the training starts over")
        else:
            step = self.last.step
            for fault in faults:
                self._note(f"{fault}; resumed from {self.last.path.name}, the last undamaged one")
            if not self.metrics.truncate(*self.last.metrics):
                self._note(f"{self.metrics.file}: missing; a new one starts after step {step}")

    def _note(self, note: str) -> None:
        self.notes.append(note)
        warnings.warn(note, stacklevel=5)

    def _refuse_links(self) -> None:
        """Refuse links where libraries write: they would follow them."""
        paths = [self.path / name for name in (CHECKPOINTS, _MODEL)]
        paths += [self.path / RUN, *self.path.glob(f"{RUN}-from-*")]
        if self.checkpoints.is_dir():
            paths += self.checkpoints.iterdir()
        for path in paths:
            if os.path.lexists(path) and not _is_regular(path):
                raise RecordError(f"{path}: a link, pipe or device; remove it")

    def _tidy_runs(self) -> None:
        """Remove locks and temporary files from the probe's runs of processes that were killed."""
        for run in [self.path / RUN, *self.path.glob(f"{RUN}-from-*")]:
            for folder, _, names in os.walk(run):
                for name in filter(is_remains, names):
                    discard(Path(folder, name))

    @property
    def finished(self) -> bool:
        """Whether the folder contains the result."""
        return (self.path / CONFIG).exists()

    @property
    def checkpoints(self) -> Path:
        """The folder for checkpoints."""
        return self.path / CHECKPOINTS

    def abandon(self) -> None:
        """See `RecordFolder.abandon`."""
        remove_checkpoints(self.checkpoints)
        for path in (self.path / _MODEL, *self._created_paths):
            with suppress(RecordError):
                remove(path)
        self._remove([TRAINING.name, METRICS])

    def complete(self, step: int, last: bool, best: Path | None) -> None:
        """Flush a checkpoint that has been written to the disk, and then mark it as complete.

        Args:
            step: the step after which it was written.
            last: whether that is the last step.
            best: the file with the best weights so far, if any.

        Raises:
            RecordError: the checkpoint contains something other than regular files and folders.
            OSError: it cannot be read, or not be written to the disk.
        """
        checkpoint = self.checkpoints / f"checkpoint-{step}"
        seal(checkpoint, last, self.metrics.extent(), best)

    def run_folder(self, first_step: int) -> Path:
        """Choose the folder for a probe's run; every process has one of its own.

        A process that was killed before its first checkpoint may have left a run under the same
        name, which is renamed.

        Args:
            first_step: the step that the training is resumed from; 0: it is new.

        Returns:
            A path that does not exist.
        """
        run = self.path / (RUN if not first_step else f"{RUN}-from-{first_step}")
        if os.path.lexists(run):
            number = 1
            while os.path.lexists(aside := run.with_name(f"{run.name}.lost-{number}")):
                number += 1
            os.replace(run, aside)
        self._created_paths.append(run)
        return run

    @contextmanager
    def room(self, what: str) -> Iterator[None]:
        """Turn the various errors of libraries that cannot write a file into one `RecordError`.

        Args:
            what: what is written in the block, for the message: "the model".

        Yields:
            None.

        Raises:
            RecordError: the file could not be written.
        """
        from safetensors import SafetensorError

        try:
            yield
        except Exception as error:
            text = str(error)
            if not (
                isinstance(error, OSError | SafetensorError)
                or "PytorchStreamWriter" in text
                or "inline_container" in text
            ):
                raise
            advice = "make room, and resume: the last checkpoint is kept"
            raise RecordError(
                f"{self.path}: {what} cannot be written ({(text or repr(error)).splitlines()[0]}); "
                f"{advice if self.taken or self.resumed else 'make room'}"
            ) from error

    @contextmanager
    def new_model(self) -> Iterator[Path]:
        """Create a temporary folder for the result, from which `finish` moves the files.

        Yields:
            The folder; it is removed at the end of the block.

        Raises:
            RecordError: the disk is full, or the folder is not writable.
        """
        folder = self.path / _MODEL
        self._clear_model()
        try:
            with self.room("the model"):
                folder.mkdir()
                yield folder
        finally:
            with suppress(RecordError):
                self._clear_model()

    def kept_checkpoint(self, step: int, source: Path) -> AbstractContextManager[Path]:
        """Write the model after a step as `checkpoint-STEP`, a checkpoint that stays.

        Args:
            step: the optimizer steps taken so far.
            source: the folder of the model that is trained.

        Returns:
            See `deltalens.io.records.plain_models.kept_checkpoint`.
        """
        return kept_checkpoint(self.path, step, source)

    def _clear_model(self) -> None:
        """Remove the temporary folder that a process which was killed may have left."""
        remove(self.path / _MODEL)

    def finish(self, model: Path, source: Path) -> None:
        """Turn the folder into a checkpoint: move the model's files into it (the configuration
        last), copy the tokenizer and generation settings, and remove the training's checkpoints.

        Args:
            model: the folder that `new_model` yielded.
            source: the folder of the model that was trained.

        Raises:
            DeltaLensError: a file cannot be copied or removed.
            OSError: a file cannot be moved, or not be written to the disk.
        """
        add_tokenizer(model, source)
        parts = sorted(model.iterdir(), key=lambda part: part.name == CONFIG)
        for part in parts:
            sync_all(part)
        for part in parts:
            target = self.path / part.name
            if part.is_dir():
                remove(target)  # Moved by a call that was killed before it had moved the rest.
            os.replace(part, target)
            self._created_paths.append(target)
        sync_folder(self.path)
        remove_checkpoints(self.checkpoints)


def _is_regular(path: Path) -> bool:
    mode = path.lstat().st_mode
    return stat.S_ISDIR(mode) or stat.S_ISREG(mode)
