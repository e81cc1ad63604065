"""Tiny models, their scores and their losses, of the tests of Mask Fine-Tuning."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.support import models
from tests.support.masked_training import batches, bits_of, llama, loss_of

__all__ = ["FAMILIES", "batches", "bits_of", "llama", "loss_of", "named_scores", "plain_bits"]

FAMILIES = {name: models.FAMILIES[name] for name in ("llama", "gpt2", "opt", "bert", "qwen2")}
SCORES = ".parametrizations.weight.0.scores"
RULES: dict[str, dict[str, Any]] = {
    "magnitude": {},
    "value": {"rank_by": "value"},
    "threshold": {"threshold": -0.01},
}


def named_scores(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weight's name -> its scores."""
    return {
        name.replace(SCORES, ".weight"): parameter
        for name, parameter in model.named_parameters()
        if name.endswith(SCORES)
    }


def plain_bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's own parameters, named as without masks."""
    return {
        name.replace("parametrizations.weight.original", "weight"): value
        for name, value in bits_of(model).items()
        if not name.endswith(SCORES)
    }


def rule_of(given: dict[str, Any], ratio: float | str) -> dict[str, Any]:
    """As `MaskTuning` takes it."""
    return given if "threshold" in given else {**given, "mask_ratio": ratio}


def tie(parameter: Tensor, generator: torch.Generator) -> None:
    """Put scores on a coarse grid, of both signs, with zeros."""
    with torch.no_grad():
        parameter.copy_(
            torch.randint(-4, 5, parameter.shape, generator=generator) * torch.tensor(1 / 64)
        )
