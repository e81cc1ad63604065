"""How many parameters a budget stands for, from the configuration of a model alone."""

from __future__ import annotations

from typing import NamedTuple

import torch

from deltalens.errors import DeltaLensError
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.pretrained import classifier_of
from deltalens.io.tying import skeleton
from deltalens.scoring.loading import Head
from deltalens.training.lora import adapted

__all__ = ["LowRankSize", "low_rank_size"]


class LowRankSize(NamedTuple):
    """What adapters of a model count."""

    per_rank: int
    """Entries of all adapters of rank 1: of a layer its inputs and outputs."""
    parameters: int
    """The model's parameters without any adapter; a tied one counts once."""

    def trained(self, rank: int) -> int:
        """Count what a LoRA trains.

        Args:
            rank: of every adapter.

        Returns:
            The number of entries.
        """
        return rank * self.per_rank


def low_rank_size(checkpoint: Checkpoint, targets: str, head: Head | None = None) -> LowRankSize:
    """Count the adapters of a model, by fitting them to it without its weights.

    Args:
        checkpoint: of the model.
        targets: which layers are adapted, as `target_layers` takes it.
        head: the new head that the model gets, if it gets one.

    Returns:
        The counts.

    Raises:
        DeltaLensError: the model's configuration cannot be built without weights, or no layer is a
            target.
    """
    settings = dict(checkpoint.config)
    classifier = classifier_of(settings) if head is not None else None
    if head is not None and classifier is not None:
        settings |= {"architectures": [classifier.__name__], **head.labels.config()}
    with torch.random.fork_rng(devices=[]):
        model = skeleton(settings)
        if model is None:
            raise DeltaLensError(
                f"{checkpoint.path}: its parameters cannot be counted before it is loaded, because "
                "transformers cannot build it from its configuration alone"
            )
        parameters = sum(parameter.numel() for parameter in model.parameters())
        adapter, _ = adapted(model, 1, 1, 0.0, targets)
    per_rank = sum(
        parameter.numel()
        for name, parameter in adapter.named_parameters()
        if ".lora_A." in name or ".lora_B." in name
    )
    return LowRankSize(per_rank, parameters)
