"""Which checkpoint of a training is kept: the one with the least loss on held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from deltalens.errors import RecordError
from deltalens.io.files import write_whole
from deltalens.io.folders import remove
from deltalens.io.records.checkpoints import BEST, SealedCheckpoint
from deltalens.scoring.forms import FileScoring
from deltalens.scoring.ready_suite import evaluating
from deltalens.training.methods.base import KeptState

__all__ = ["Chooser", "TrainedParameters"]

_Kept = tuple[int, float, Path]
"""Step, loss and file of kept weights."""


class Chooser:
    """Measures held-out rows during a training, and keeps the weights with the least loss.

    The best weights so far lie in a file, because an interrupted training goes on from its last
    checkpoint: older files stay until a checkpoint has been written that knows a better one.

    Args:
        scoring: the held-out rows; their `loss` decides, `dpo_loss` of preferences, or the loss of
            labels.
        model: the model in training.
        folder: the folder of the files.
        state: what is kept of the model.
    """

    def __init__(
        self, scoring: FileScoring, model: nn.Module, folder: Path, state: KeptState
    ) -> None:
        self._scoring, self._model, self._folder = scoring, model, folder
        self._state = state

    def look(self, step: int) -> dict[str, list[float]]:
        """Measure the model after a step, and keep its weights if none were better.

        Args:
            step: the optimizer steps taken so far.

        Returns:
            Metric -> value, standard error and number of rows.
        """
        with evaluating(self._model):
            metrics = self._scoring.measure(self._model)
        loss = metrics[self._scoring.deciding_metric].value
        best = min((kept_loss for _, kept_loss, _ in self._kept()), default=float("inf"))
        if loss < best:
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = self._state.state_dict()
            trained = {name: tensor.cpu().contiguous() for name, tensor in kept.items()}
            file = self._folder / f"best-{step}.safetensors"
            write_whole(file, save(trained, {"loss": repr(loss)}))
        return {name: list(measured) for name, measured in metrics.items()}

    def restore(self) -> int:
        """Put the best weights into the model.

        Returns:
            The step they are from.

        Raises:
            RecordError: none was kept (every loss was NaN).
        """
        kept = self._kept()
        if not kept:
            raise RecordError(f"{self._folder}: no loss of the held-out rows was finite")
        step, _, file = min(kept, key=_loss)
        self._state.load_state_dict(load_file(file))
        return step

    def best(self, until: int) -> Path | None:
        """Find the best weights up to a step.

        Args:
            until: the last step that counts.

        Returns:
            Their file; None if none were kept by then.
        """
        kept = [entry for entry in self._kept() if entry[0] <= until]
        return min(kept, key=_loss)[2] if kept else None

    def tidy(self, checkpoints: Sequence[int]) -> None:
        """Delete weights that no checkpoint needs any more, after one has been written.

        Args:
            checkpoints: the steps of all checkpoints that exist.
        """
        needed = {self.best(step) for step in checkpoints}
        for step, _, file in self._kept():
            if step <= max(checkpoints) and file not in needed:
                file.unlink()

    def go_back_to(self, checkpoint: SealedCheckpoint | None) -> None:
        """Delete what was kept after a checkpoint: the training goes on from there.

        Args:
            checkpoint: the last one; None if the training starts again.
        """
        for file in self._folder.glob("best-*"):
            if checkpoint is None or file.name != checkpoint.best:
                remove(file)

    def _kept(self) -> list[_Kept]:
        entries = []
        for file in self._folder.iterdir():
            if match := BEST.fullmatch(file.name):
                with safe_open(file, "pt") as weights:
                    loss = float(weights.metadata()["loss"])
                entries.append((int(match[1]), loss, file))
        return sorted(entries)


class TrainedParameters:
    """The parameters of a model that need a gradient.

    Args:
        model: the model in training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Return them.

        Returns:
            Name -> parameter, detached; not a copy.
        """
        return {name: parameter.detach() for name, parameter in self._trained()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put them back.

        Args:
            state: what `state_dict` returned.
        """
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(state[name])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)


def _loss(entry: _Kept) -> float:
    return entry[1]
