"""Models that compute no numbers: found before any work is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, errors_from, fault_list
from deltalens.io.records import Measurement

__all__ = ["are_numbers", "check_measured", "check_model", "no_numbers"]


def are_numbers(logits: Tensor) -> Tensor:
    """Whether a position's logits (..., V) are numbers: none is NaN or plus infinity, and not all
    are minus infinity. A single class that a model rules out is minus infinity."""
    return logits.amax(-1).isfinite()


@torch.inference_mode()
def check_model(model: nn.Module, ids: Sequence[int], where: str | Path) -> None:
    """Refuse a causal language model that computes no numbers, by one forward.

    Args:
        model: in evaluation mode.
        ids: a text's tokens.
        where: the model's folder.

    Raises:
        DeltaLensError: with the dtype, and what to do; or the model fails on these tokens.
    """
    if not ids:
        return
    device = next(model.parameters()).device
    with errors_from("transformers", f"{where}: {type(model).__name__} takes no text"):
        logits = model(input_ids=torch.tensor([[*ids]], device=device), use_cache=False).logits
    if not bool(are_numbers(logits).all()):
        raise no_numbers(model, where)


def check_measured(found: Mapping[str, Measurement], model: nn.Module, where: str | Path) -> None:
    """Refuse the model that a study is about, if a measurement of it is NaN: on a row that
    `check_model` has not seen.

    Raises:
        DeltaLensError: with the dtype, and what to do.
    """
    faults = [name for name, measured in found.items() if measured.value != measured.value]
    if faults:
        raise no_numbers(model, where, f" ({', '.join(faults)}: NaN)")


def no_numbers(model: nn.Module, where: str | Path, how: str = "") -> DeltaLensError:
    """The error for such a model: the dtype, which weights are at fault, and what to do."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    said = f"{where}: in {dtype} the model computes NaN or infinite logits{how}"
    broken = [name for name, held in model.named_parameters() if not held.isfinite().all()]
    wider = {"float16": "bfloat16 or float32", "bfloat16": "float32", "float32": "float64"}
    advice = (
        f"try another --dtype: {wider[dtype]}" if dtype in wider else "the weights are at fault"
    )
    if broken:
        return DeltaLensError(fault_list(f"{said}; {advice}. Weights that are not finite:", broken))
    return DeltaLensError(f"{said}, and nothing can be measured; {advice}")
