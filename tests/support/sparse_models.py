"""A small model with sparse values beside its dense twin, whose gradients are masked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltalens import SparseTuning


class Net(nn.Module):
    """Two linear layers with biases and a nonlinearity, over any batch dimensions."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20, dtype=dtype)
        self.second = nn.Linear(20, 7, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The output of the second layer."""
        output: Tensor = self.second(torch.tanh(self.first(input)))
        return output


def random_masks(model: nn.Module, names: Sequence[str], density: float, seed: int = 0) -> Any:
    """Layer name -> bool mask of its weight with about this density."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(model.get_submodule(name).weight.shape, generator=generator) < density
        for name in names
    }


class DenseTwin:
    """A model of which whole weights get gradients, that are then masked.

    Args:
        model: Copied.
        masks: Layer name -> bool mask.
    """

    def __init__(self, model: nn.Module, masks: Any) -> None:
        self.model, self.masks = copy.deepcopy(model), masks
        self.model.requires_grad_(False)
        self.weights = {
            name: self.model.get_submodule(name).weight.requires_grad_(True) for name in masks
        }

    def mask_gradients(self) -> None:
        """Zero what is outside the masks."""
        for name, weight in self.weights.items():
            weight.grad = weight.grad * self.masks[name]

    def gradients(self) -> dict[str, Tensor]:
        """Layer name -> the gradient at the masked entries, in their order."""
        return {name: weight.grad[self.masks[name]] for name, weight in self.weights.items()}


def values_of(tuning: SparseTuning) -> dict[str, nn.Parameter]:
    """Layer name -> its values."""
    names = [name.removesuffix(".weight") for name in tuning.indices()]
    return dict(zip(names, tuning.parameters(), strict=True))


def same_model(model: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers have the same names and bits."""
    own, others = model.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[n], others[n]) for n in own)
