"""The folder of a training: what was asked, metrics as they come, checkpoints, and the result.

The folder becomes a plain Hugging Face checkpoint when the training is done; until then it has no
`config.json`, and nothing takes it for a model. One process at a time has it: its lock goes with
the last of what the training needs, so that nothing of it is left in the result.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.files import copy_beside, discard, sync_folder
from deltalens.io.folders import check_new_folder, remove
from deltalens.io.locks import LOCK, is_remains
from deltalens.io.plain_json import check_names
from deltalens.io.platform import sync
from deltalens.io.records.checkpoints import (
    SealedCheckpoint,
    last_whole,
    remove_checkpoints,
    seal,
)
from deltalens.io.records.folder import Manifest, RecordFolder
from deltalens.io.records.metrics import METRICS, Metrics
from deltalens.io.records.run import RUN as RUN_MANIFEST
from deltalens.io.records.schema import Fields, Named, Real, Text

__all__ = [
    "MASKS",
    "TrainingFolder",
    "TrainingRecord",
    "find_run",
    "is_training",
    "load_training",
]

TRAINING = Manifest(
    "training",
    "train.json",
    Fields({"asked": Fields(), "facts": Fields(known={"removed": Named(Real(0, 1), Text())})}),
)
CHECKPOINTS, RUN = "checkpoints", "run"
MASKS = "masks.safetensors"
"""Which weights a method removed: `deltalens.apply_masks` reads it."""
_MODEL, _CONFIG = ".model", "config.json"
"""Where the result is written before it is moved into its place; what is moved last."""
_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "chat_template*", "added_*")


@dataclass(frozen=True)
class TrainingRecord:
    """A training as it lies on the disk."""

    path: Path
    spec: dict[str, Any]
    """Everything that decided what it led to."""
    facts: dict[str, Any]
    """What was found out on the way; of a finished one also what it came to."""


def is_training(folder: str | Path) -> bool:
    """Whether a folder is a training's."""
    return Path(folder, TRAINING.name).is_file()


def load_training(folder: str | Path) -> TrainingRecord:
    """Read what a training's folder says of it, finished or not, without torch.

    Raises:
        RecordError: no training there, or one of a format this version does not know.
    """
    manifest = TRAINING.read(Path(folder))
    return TrainingRecord(Path(folder), manifest["asked"], manifest["facts"])


def find_run(folder: str | Path) -> Path:
    """Find the folder of a probe's run.

    Args:
        folder: of a run, or of a training that was watched by a probe.

    Returns:
        The folder itself if it is a run's; in a training's folder the run of its last start. (A
        training that is resumed logs another run.)

    Raises:
        RecordError: the folder holds neither, or the training was not watched by a probe.
    """
    path = Path(folder)
    if (path / RUN_MANIFEST.name).is_file():
        return path
    if not is_training(path):
        raise RecordError(
            f"{path}: no run here (no {RUN_MANIFEST.name}), and no training that could hold one "
            f"(no {TRAINING.name})"
        )
    starts = {path / RUN: "0"}
    starts |= {run: run.name.removeprefix(f"{RUN}-from-") for run in path.glob(f"{RUN}-from-*")}
    runs = {
        run: int(step)
        for run, step in starts.items()
        if step.isdecimal() and (run / RUN_MANIFEST.name).is_file()
    }
    if not runs:
        raise RecordError(f"{path}: a training without a run: train with probe to log one")
    return max(runs, key=runs.__getitem__)


class TrainingFolder(RecordFolder):
    """A training's folder, open for writing, by one process at a time, until `close`.

    Args:
        path: the folder; new, or one with the same training when it is resumed.
        spec: everything that decides what the training leads to, as JSON values.
        inputs: what is read.
        resume: go on with the training that the folder holds.

    Raises:
        RecordError: the folder holds something else, another training (the fields that differ are
            named), or one that is finished, another process is writing to it, or none of its
            checkpoints is whole; or a name in it, or its own, is no valid Unicode.
    """

    manifest = TRAINING

    def __init__(
        self, path: Path, spec: Mapping[str, Any], inputs: Sequence[Path], resume: bool
    ) -> None:
        check_names(str(path))
        super().__init__(path, spec)
        self.notes: list[str] = []
        """What a user should know about what was there."""
        self.metrics = Metrics(path)
        self.last: SealedCheckpoint | None = None
        """What the training goes on from."""
        self.taken = 0
        """Steps of this invocation."""
        self.resumed = self._resume = resume
        self._inputs = list(inputs)
        self._own: list[Path] = []
        """What is this invocation's, beside the names that all trainings have."""
        self._left = os.path.lexists(path / LOCK)
        self._open()

    def _is_new(self) -> bool:
        if self._resume and not self.path.is_dir():
            raise RecordError(f"{self.path}: no training to go on with (no such folder)")
        self.resumed = self._resume and not self._was_killed_at_once()
        held = os.path.lexists(self.path / TRAINING.name)
        if self.resumed and not held:
            raise RecordError(f"{self.path}: no training to go on with (no {TRAINING.name})")
        if self.resumed:
            return False
        if held:
            raise RecordError(f"{self.path}: holds a training; --resume goes on with it")
        check_new_folder(self.path, self._inputs, locked=True)
        return True

    def _was_killed_at_once(self) -> bool:
        return self._left and all(is_remains(found.name) for found in self.path.iterdir())

    def _begin(self) -> None:
        self.write_manifest()
        self.checkpoints.mkdir(exist_ok=True)

    def _go_on(self) -> None:
        held = TRAINING.read(self.path)
        self.facts = dict(held["facts"])
        self._unite(held)
        self._refuse_links()
        self._tidy_runs()
        self._clear_model()
        if self.finished:
            remove_checkpoints(self.checkpoints)
            raise RecordError(f"{self.path}: this training is finished")
        self.checkpoints.mkdir(exist_ok=True)
        self.last, faults = last_whole(self.checkpoints)
        if self.last is None:
            self.metrics.clear()
            self._tell(f"{self.path}: no checkpoint to go on from; begun from the start")
        else:
            step = self.last.step
            for fault in faults:
                self._tell(f"{fault}; gone on from {self.last.path.name}, the last whole one")
            if not self.metrics.go_back_to(*self.last.metrics):
                self._tell(f"{self.metrics.file}: missing; begun anew from step {step}")

    def _tell(self, note: str) -> None:
        self.notes.append(note)
        warnings.warn(note, stacklevel=5)

    def _refuse_links(self) -> None:
        """Libraries write below these, and would follow a link."""
        found = [self.path / name for name in (CHECKPOINTS, _MODEL)]
        found += [self.path / RUN, *self.path.glob(f"{RUN}-from-*")]
        if self.checkpoints.is_dir():
            found += self.checkpoints.iterdir()
        for one in found:
            if os.path.lexists(one) and not _is_plain(one):
                raise RecordError(f"{one}: a link, pipe or device; remove it")

    def _tidy_runs(self) -> None:
        """Runs of calls that were killed stay; what they were writing, and their locks, do not."""
        for run in [self.path / RUN, *self.path.glob(f"{RUN}-from-*")]:
            for folder, _, names in os.walk(run):
                for name in filter(is_remains, names):
                    discard(Path(folder, name))

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.path / _CONFIG).exists()

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written on the way."""
        return self.path / CHECKPOINTS

    def abandon(self) -> None:
        """See `RecordFolder`."""
        remove_checkpoints(self.checkpoints)
        for found in (self.path / _MODEL, *self._own):
            with suppress(RecordError):
                remove(found)
        self._remove([TRAINING.name, METRICS])

    def complete(self, step: int, last: bool, best: Path | None) -> None:
        """A checkpoint has been written: bring it to the disk, and only then call it whole.

        Args:
            step: after which.
            last: there is none after it.
            best: the file with the best weights so far.
        """
        checkpoint = self.checkpoints / f"checkpoint-{step}"
        seal(checkpoint, last, self.metrics.extent(), best)

    def run_folder(self, first_step: int) -> Path:
        """Where a probe logs; another one for each invocation. One that was killed before its first
        checkpoint may have left a run: it is set aside."""
        run = self.path / (RUN if not first_step else f"{RUN}-from-{first_step}")
        if os.path.lexists(run):
            number = 1
            while os.path.lexists(aside := run.with_name(f"{run.name}.lost-{number}")):
                number += 1
            os.replace(run, aside)
        self._own.append(run)
        return run

    @contextmanager
    def room(self, what: str) -> Iterator[None]:
        """A checkpoint or model that the disk does not take is an error of its own: each of the
        libraries that write one has its own way to say so."""
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
            kept = "the last whole checkpoint is kept: make room, and resume: it goes on from there"
            raise RecordError(
                f"{self.path}: {what} cannot be written ({(text or repr(error)).splitlines()[0]}); "
                f"{kept if self.taken or self.resumed else 'make room'}"
            ) from error

    @contextmanager
    def new_model(self) -> Iterator[Path]:
        """A folder for the result, which is moved into its place by `finish`; gone if it is not.

        Raises:
            RecordError: the disk is full, or there is no right to write.
        """
        made = self.path / _MODEL
        self._clear_model()
        try:
            with self.room("the model"):
                made.mkdir()
                yield made
        finally:
            with suppress(RecordError):
                self._clear_model()

    def _clear_model(self) -> None:
        """What one that was killed left."""
        remove(self.path / _MODEL)

    def finish(self, made: Path, source: Path) -> None:
        """Move a written model into the folder, its configuration last, with the tokenizer of its
        source and how that one generates; the checkpoints go."""
        for pattern in (*_TOKENIZER, "generation_config.json"):
            for file in source.glob(pattern):
                copy_beside(file, source, made / file.name)
        files = sorted(made.iterdir(), key=lambda file: file.name == _CONFIG)
        for file in files:
            with file.open("rb") as stream:
                sync(stream.fileno())
        for file in files:
            os.replace(file, self.path / file.name)
            self._own.append(self.path / file.name)
        sync_folder(self.path)
        remove_checkpoints(self.checkpoints)


def _is_plain(path: Path) -> bool:
    mode = path.lstat().st_mode
    return stat.S_ISDIR(mode) or stat.S_ISREG(mode)
