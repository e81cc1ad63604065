"""The folder of a training: what was asked, metrics as they come, checkpoints, and the result.

The folder becomes a plain Hugging Face checkpoint when the training is done; until then it has no
`config.json`, and nothing takes it for a model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.files import check_new_folder, sync_folder, write_whole
from deltalens.io.identity import check_version, united
from deltalens.io.manifest import write_manifest
from deltalens.io.version import IDENTITY

__all__ = ["CHECKPOINTS", "MASKS", "METRICS", "RECORD", "RUN", "TrainingFolder"]

RECORD, METRICS, CHECKPOINTS, RUN = "train.json", "metrics.jsonl", "checkpoints", "run"
MASKS = "masks.safetensors"
"""Which weights a method removed: `deltalens.apply_masks` reads it."""
_WHOLE = "deltalens-complete"
"""In a checkpoint that was written to its end."""
_TOKENIZER = ("tokenizer*", "vocab*", "merges*", "special_tokens_map*", "chat_template*", "added_*")


class TrainingFolder:
    """A training's folder, open for writing.

    Args:
        path: the folder; new, or one with the same training when it is resumed.
        asked: everything that decides what the training leads to, as JSON values.
        inputs: what is read.
        resume: go on with the training that the folder holds.

    Raises:
        RecordError: the folder holds something else, another training (the fields that differ are
            named), or one that is finished.
    """

    def __init__(
        self, path: Path, asked: Mapping[str, Any], inputs: list[Path], resume: bool
    ) -> None:
        self.path, self.asked = path, json.loads(json.dumps(dict(asked)))
        self.facts: dict[str, Any] = {}
        self._made: list[Path] = []
        if resume:
            self._check_same()
        else:
            if (path / RECORD).exists():
                raise RecordError(f"{path}: holds a training; --resume goes on with it")
            check_new_folder(path, inputs)

    def _check_same(self) -> None:
        file = self.path / RECORD
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            before, self.facts = dict(held["asked"]), dict(held["facts"])
        except FileNotFoundError as error:
            raise RecordError(f"{self.path}: no training to go on with (no {RECORD})") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{file}: not a training's record: {error}") from error
        check_version(self.path, held)
        united(f"{self.path} holds another training:", before, self.asked)
        if self.finished:
            raise RecordError(f"{self.path}: this training is finished")

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.path / "config.json").exists()

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are written on the way."""
        return self.path / CHECKPOINTS

    def begin(self) -> None:
        """Make the folder, and write what was asked."""
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be made: {error.strerror}") from error
        self.write_record()

    def abandon(self) -> None:
        """A training came to nothing: take away what it wrote, and the folders made for it."""
        for found in self.path.iterdir():
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def write_record(self) -> None:
        """Write `train.json`."""
        record = {"identity": IDENTITY, "asked": self.asked, "facts": self.facts}
        write_manifest(self.path / RECORD, record)

    def last_checkpoint(self) -> Path | None:
        """The last one that was written to its end; others are removed."""
        whole: dict[int, Path] = {}
        for found in self.checkpoints.glob("checkpoint-*"):
            if (found / _WHOLE).exists():
                whole[int(found.name.rpartition("-")[2])] = found
            else:
                shutil.rmtree(found, ignore_errors=True)
        return whole[max(whole)] if whole else None

    def complete(self, checkpoint: Path) -> None:
        """A checkpoint has been written: bring it to the disk, and only then call it whole."""
        for file in checkpoint.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        write_whole(checkpoint / _WHOLE, b"")
        sync_folder(checkpoint)

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the metrics."""
        try:
            with (self.path / METRICS).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(dict(line)) + "\n")
        except OSError as error:
            raise RecordError(f"{self.path / METRICS}: {error.strerror}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far; a torn last one does not count."""
        file = self.path / METRICS
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        lines = []
        for line in text.splitlines():
            with suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def forget_after(self, step: int) -> None:
        """Take back metrics of steps that will be taken again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self.path / METRICS, text.encode())

    def run_folder(self, first_step: int) -> Path:
        """Where a probe logs; another one for each sitting."""
        return self.path / (RUN if not first_step else f"{RUN}-from-{first_step}")

    def finish(self, made: Path, source: Path) -> None:
        """Move a written model into the folder, its configuration last, with the tokenizer of its
        source and how that one generates; the checkpoints go."""
        for pattern in (*_TOKENIZER, "generation_config.json"):
            for file in source.glob(pattern):
                shutil.copyfile(file, made / file.name)
        for file in made.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        for file in sorted(made.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, self.path / file.name)
        sync_folder(self.path)
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
