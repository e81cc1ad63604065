"""Detecting models that compute NaN or infinite logits, before any work is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, errors_from, fault_list
from deltalens.io.records import Measurement
from deltalens.scoring.placement import input_device

__all__ = ["are_numbers", "check_measured", "check_model", "no_numbers"]


def are_numbers(logits: Tensor) -> Tensor:
    """Tell at which positions logits are usable.

    Args:
        logits: (..., V).

    Returns:
        (...): true where no logit is NaN or plus infinity, and not all are minus infinity. (Single
        logits may be minus infinity: the model excludes these tokens.)
    """
    return logits.amax(-1).isfinite()


@torch.inference_mode()
def check_model(model: nn.Module, ids: Sequence[int], where: str | Path) -> None:
    """Refuse a causal language model that computes NaN or infinite logits, by one forward pass.

    Args:
        model: the model, in evaluation mode.
        ids: token ids of a text.
        where: the model's folder, for the message.

    Raises:
        DeltaLensError: names the dtype, and says what to do; or the model fails on these tokens.
    """
    if not ids:
        return
    device = input_device(model)
    with errors_from("transformers", f"{where}: {type(model).__name__} cannot read a text"):
        logits = model(input_ids=torch.tensor([[*ids]], device=device), use_cache=False).logits
    if not bool(are_numbers(logits).all()):
        raise no_numbers(model, where)


def check_measured(metrics: Mapping[str, Measurement], model: nn.Module, where: str | Path) -> None:
    """Refuse the model that a study is about if a measurement of it is NaN. This catches rows that
    `check_model` does not test.

    Args:
        metrics: measurements by name.
        model: the model.
        where: the model's folder, for the message.

    Raises:
        DeltaLensError: names the dtype, and says what to do.
    """
    faults = [name for name, measured in metrics.items() if measured.value != measured.value]
    if faults:
        raise no_numbers(model, where, f" ({', '.join(faults)}: NaN)")


def no_numbers(model: nn.Module, where: str | Path, detail: str = "") -> DeltaLensError:
    """Word the error for a model that computes NaN or infinite logits.

    Args:
        model: the model.
        where: its folder.
        detail: what was NaN, to append to the statement.

    Returns:
        An error that names the dtype and the weights that are not finite, and says what to do.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    statement = f"{where}: in {dtype} the model computes NaN or infinite logits{detail}"
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    wider = {"float16": "bfloat16 or float32", "bfloat16": "float32", "float32": "float64"}
    advice = (
        f"try another `dtype`: {wider[dtype]}" if dtype in wider else "the weights are at fault"
    )
    if broken:
        headline = f"{statement}; {advice}. Weights that are not finite:"
        return DeltaLensError(fault_list(headline, broken))
    return DeltaLensError(f"{statement}, so that nothing can be measured; {advice}")
