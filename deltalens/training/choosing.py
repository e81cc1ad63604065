"""Which moment of a training comes out: the one that held-out rows like best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from deltalens.errors import RecordError
from deltalens.io.files import write_whole
from deltalens.io.folders import remove
from deltalens.io.records.checkpoints import BEST, SealedCheckpoint
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.preferences import Preferences
from deltalens.scoring.suite import evaluating

__all__ = ["Chooser"]


class Chooser:
    """Measures held-out rows now and then, and keeps what was trained as it was best.

    The best so far lies in a file, as an interrupted training goes on from its last checkpoint:
    older ones stay until a checkpoint knows of a better one.

    Args:
        scoring: the held-out rows; `loss` decides, and of preferences `dpo_loss`.
        model: in training; what needs a gradient is kept.
        folder: where the files are.
    """

    def __init__(self, scoring: Scoring | Preferences, model: nn.Module, folder: Path) -> None:
        self._scoring, self._model, self._folder = scoring, model, folder

    def look(self, step: int) -> dict[str, list[float]]:
        """Measure the model after a step, and keep it if none was better."""
        with evaluating(self._model):
            found = self._scoring.measure(self._model)
        loss = found[self._scoring.decides].value
        best = min((one for _, one, _ in self._kept()), default=float("inf"))
        if loss < best:
            self._folder.mkdir(parents=True, exist_ok=True)
            trained = {name: p.detach().cpu().contiguous() for name, p in self._trained()}
            file = self._folder / f"best-{step}.safetensors"
            write_whole(file, save(trained, {"loss": repr(loss)}))
        return {name: list(measured) for name, measured in found.items()}

    def restore(self) -> int:
        """Put the best one into the model; the step it was at.

        Raises:
            RecordError: none was kept (every loss was NaN).
        """
        kept = self._kept()
        if not kept:
            raise RecordError(f"{self._folder}: no loss of the held-out rows was finite")
        step, _, file = min(kept, key=lambda one: one[1])
        held = load_file(file)
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(held[name])
        return step

    def best(self, until: int) -> Path | None:
        """The file of the best up to a step."""
        kept = [one for one in self._kept() if one[0] <= until]
        return min(kept, key=lambda one: one[1])[2] if kept else None

    def tidy(self, checkpoints: Sequence[int]) -> None:
        """A checkpoint was written: of the ones up to it only those are needed that are the best
        for it, or for an older one that is still there.

        Args:
            checkpoints: steps of all that are there.
        """
        needed = {self.best(step) for step in checkpoints}
        for step, _, file in self._kept():
            if step <= max(checkpoints) and file not in needed:
                file.unlink()

    def go_back_to(self, checkpoint: SealedCheckpoint | None) -> None:
        """Training goes on from a checkpoint, or anew: what came after it comes again."""
        for file in self._folder.glob("best-*"):
            if checkpoint is None or file.name != checkpoint.best:
                remove(file)

    def _trained(self) -> Iterator[tuple[str, Any]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)

    def _kept(self) -> list[tuple[int, float, Path]]:
        """Step, loss and file of each that is kept."""
        found = []
        for file in self._folder.iterdir():
            if named := BEST.fullmatch(file.name):
                with safe_open(file, "pt") as held:
                    loss = float(held.metadata()["loss"])
                found.append((int(named[1]), loss, file))
        return sorted(found)
