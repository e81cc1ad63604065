"""PiSSA's adapters (2404.02948): what they begin as, and how they are written for the base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from deltalens.errors import errors_from
from deltalens.training.lora import adapted

__all__ = ["FAST_SVD", "pissa_adapted", "save_for_base"]

FAST_SVD = "pissa_niter_4"
"""peft's name for a start from a fast singular value decomposition with 4 iterations, as SPEFT's
public code has it."""

_Factors = Mapping[str, torch.Tensor]
"""The factors of all adapters, by their names in peft's files."""


def pissa_adapted(
    model: nn.Module, rank: int, alpha: int, dropout: float, targets: str, seed: int
) -> tuple[Any, _Factors, tuple[str, ...]]:
    """A model whose weights are each a residual, beside an adapter that begins as the principal
    singular values and vectors: their sum is the model as it was.

    Args:
        model, rank, alpha, dropout, targets: as `adapted` takes them.
        seed: of the decomposition's random projections, whatever the global generator's state: a
            training that goes on decomposes the base again and comes to the same residual.

    Returns:
        The peft model; what its adapters begin as, on the CPU; and what was left out and why.

    Raises:
        DeltaLensError: as `adapted` does.
    """
    from peft import get_peft_model_state_dict

    adapter, notes = adapted(model, rank, alpha, dropout, targets, FAST_SVD, seed)
    factors = get_peft_model_state_dict(adapter)
    begun = {
        name: factor.detach().to("cpu", copy=True)
        for name, factor in factors.items()
        if _is_factor(name)
    }
    return adapter, begun, notes


def save_for_base(adapter: Any, begun: _Factors, folder: Path) -> None:
    """Write an adapter that any peft loads on the base itself, not on the residual.

    What training added to the base, BA - B0A0, is the product of [B, -B0] and [A; A0]: a LoRA of
    twice the rank and alpha, as peft converts PiSSA.

    Args:
        adapter: the peft model.
        begun: what `pissa_adapted` returned.
        folder: created.

    Raises:
        DeltaLensError: it cannot be written.
    """
    from peft import get_peft_model_state_dict

    with errors_from("peft", "the adapter cannot be written"):
        tensors = {
            name: tensor.detach().cpu()
            for name, tensor in get_peft_model_state_dict(adapter).items()
        }
        for name, first in begun.items():
            is_a = ".lora_A." in name
            parts = [tensors[name], first if is_a else -first]
            tensors[name] = torch.cat(parts, dim=0 if is_a else 1)
        config = copy.deepcopy(adapter.peft_config["default"])
        config.init_lora_weights = True
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
        config.inference_mode = True
        folder.mkdir(parents=True)
        plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(plain, str(folder / "adapter_model.safetensors"), {"format": "pt"})
        config.save_pretrained(str(folder))


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
