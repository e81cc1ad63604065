"""Which layers of a model get a LoRA adapter, and the adapters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from deltalens.errors import DeltaLensError, errors_from
from deltalens.methods.mask_layers import linear_layers

__all__ = ["adapted"]

_STATE, _BEHIND_A_KERNEL = "A_log", ("x_proj", "dt_proj", "out_proj")
"""A state-space mixer has such a parameter; its fused kernels read the weights of these layers
without calling them, so that an adapter there would do nothing."""


def adapted(model: nn.Module, rank: int, alpha: int, dropout: float) -> tuple[Any, tuple[str, ...]]:
    """A model with a LoRA adapter on every linear layer but its head, as far as they fit.

    Left out are the layers of state-space mixers that fused kernels pass by, and those that peft
    refuses: each kind of layer is tried on a copy of the model without weights. Parameters that are
    no linear layers (fused experts) get no adapter.

    Args:
        model: a transformers model; peft changes it in place.
        rank, alpha, dropout: as in `peft.LoraConfig`.

    Returns:
        The peft model, and what was left out and why, in sentences.

    Raises:
        DeltaLensError: peft is not installed, or no layer fits (peft's reason is given).
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise DeltaLensError("LoRA needs peft: pip install 'deltalens[train]'") from error

    def attach(where: nn.Module, names: Iterable[str]) -> Any:
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=list(names),
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # GPT-2's Conv1D keeps its weight the other way round: peft sees that for each layer.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            return get_peft_model(where, config)

    kind = type(model).__name__
    names, passed_by = _linear(model)
    if not names:
        raise DeltaLensError(f"{kind}: has no linear layers that LoRA could adapt")
    refusals: list[tuple[str, str]] = []
    if why := _refusal(attach, model, names):
        fitting: list[str] = []
        for leaf in dict.fromkeys(map(_leaf, names)):
            own = [name for name in names if _leaf(name) == leaf]
            if (why_not := _refusal(attach, model, own)) is None:
                fitting += own
            else:
                refusals.append((leaf, why_not))
        if not fitting:
            raise DeltaLensError(f"{kind} takes no LoRA: peft says: {why}")
        names = fitting
    with errors_from("peft", f"{kind} takes no LoRA"):
        made = attach(model, names)
    return made, _notes(model, names, passed_by, refusals)


def _linear(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of linear layers but the head, and those that a fused kernel passes by."""
    head_of: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = head_of()
    names: list[str] = []
    passed_by: list[str] = []
    for layer in linear_layers(model):
        if layer.module is head:
            continue
        parent = model.get_submodule(layer.name.rpartition(".")[0])
        behind = hasattr(parent, _STATE) and _leaf(layer.name) in _BEHIND_A_KERNEL
        (passed_by if behind else names).append(layer.name)
    return names, passed_by


def _refusal(attach: Any, model: nn.Module, names: Sequence[str]) -> str | None:
    """Why these layers cannot be adapted; None if they can: tried without weights."""
    shell: Any = type(model)
    try:
        with torch.device("meta"):
            tried = shell(copy.deepcopy(model.config))
    except Exception:  # Of a model's own code, which promises no kind.
        # What cannot be built without weights is not tried: peft tells when it is adapted.
        return None
    try:
        with errors_from("peft", "refused"):
            made = attach(tried, names)
    except DeltaLensError as error:
        return str(error).partition("says: ")[2]
    got = {name.partition(".lora_A.")[0] for name, _ in made.named_parameters() if "lora_A" in name}
    wanted = {f"base_model.model.{name}" for name in names}
    if got == wanted:
        return None
    return "it adapts other parameters under these names"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _notes(
    model: nn.Module, names: Sequence[str], passed_by: Sequence[str], refusals: Sequence[Any]
) -> tuple[str, ...]:
    said = []
    if passed_by:
        leaves = ", ".join(dict.fromkeys(map(_leaf, passed_by)))
        said.append(f"{leaves} of state-space mixers (fused kernels do not call them)")
    said += [f"{leaf} (peft: {why})" for leaf, why in refusals]
    fused = {
        name
        for module in model.modules()
        if not isinstance(module, nn.Conv1d | nn.Conv2d)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    }
    if fused:
        said.append(f"{', '.join(sorted(fused))} (fused experts, no linear layers)")
    if not said:
        return ()
    on = ", ".join(dict.fromkeys(map(_leaf, names)))
    return (f"LoRA adapts {len(names)} layers ({on}), without {'; '.join(said)}",)
