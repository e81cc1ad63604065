"""A masked weight, and the straight-through estimator through its mask (MFT, arXiv 2503.22764)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltalens.errors import errors_from
from deltalens.numerics.bits import TASK, array_view, integer_of
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.workers import workers

__all__ = ["compile_loops", "mask_into", "straight_through"]

_CACHE_ENTRIES = 1 << 18
"""Entries of a tensor that fit into a core's cache together with those of two others."""


def straight_through(scores: Tensor, weight: Tensor, masked: Tensor, *, signed: bool) -> Tensor:
    """Return the masked weight as a function of the scores (MFT, Eq. 4 and 5).

    In the backward pass the mask counts as the identity: dL/ds = W * dL/dW' for all entries,
    including removed ones; times sign(s) if `signed`, when the mask counts as |s|.

    The incoming gradient is overwritten where possible. Only linear layers, which make a gradient
    for this alone, may use the result.

    Args:
        scores: the learned scores, of W's shape.
        weight: W, frozen.
        masked: W', which equals W where it is kept and 0 elsewhere, of W's dtype; not copied.
        signed: whether the scores are ranked by magnitude.

    Returns:
        W', connected to the scores.
    """
    apply: Any = _StraightThrough.apply
    result: Tensor = apply(scores, weight, masked, signed)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, masked: Tensor, signed: bool) -> Tensor:
        ctx.save_for_backward(scores, weight)
        ctx.signed = signed
        return masked.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        scores, weight = ctx.saved_tensors
        signs = scores if ctx.signed else None
        return _score_gradient(gradient, weight, signs, scores), None, None, None


def _score_gradient(gradient: Tensor, weight: Tensor, signs: Tensor | None, like: Tensor) -> Tensor:
    gradient = gradient.to(like.dtype).contiguous()
    # On the CPU in parts that fit into its caches, on this thread: torch's threads still spin after
    # the matrix product, and further threads would compete with them for the cores.
    step = _CACHE_ENTRIES if gradient.device.type == "cpu" else max(1, gradient.numel())
    factors = [weight] if signs is None else [weight, signs]
    parts = [tensor.reshape(-1).split(step) for tensor in (gradient, *factors)]
    for part, weight_part, *sign_parts in zip(*parts, strict=True):
        part.mul_(weight_part)
        for tensor in sign_parts:
            part.mul_(tensor.sign())
    return gradient


def mask_into(
    weight: Tensor, kept: PackedMask, out: Tensor, previous: PackedMask | None = None
) -> None:
    """Write the weight into `out` where it is kept, and zero elsewhere.

    Args:
        weight: the weight, contiguous.
        kept: a mask of the flat weight.
        out: written; of the weight's shape and dtype, contiguous.
        previous: the mask that `out` was last written with. Entries that both masks treat alike are
            not touched; from step to step few change.
    """
    if weight.device.type != "cpu":
        mask = kept.unpacked().view(weight.shape)
        torch.where(mask, weight, weight.new_zeros(()), out=out)
        return
    from deltalens.numerics import compiled_masks

    integer = integer_of(weight.dtype)
    bits = array_view(weight.detach().view(-1).view(integer))
    target = out.view(-1).view(integer).numpy()
    words = kept.words.view(np.uint32)
    if previous is not None:
        compiled_masks.copy_changed(bits, previous.words.view(np.uint32), words, target)
        return

    def copy(span: slice) -> None:
        compiled_masks.copy_inside(bits[span], words[span.start // 32 :], target[span])

    _visit_parts(bits.size, copy)


def _visit_parts(size: int, visit: Any) -> None:
    """Visit the parts of a tensor, each on a thread."""
    spans = [slice(start, start + TASK) for start in range(0, size, TASK)]
    if len(spans) < 2:
        for span in spans:
            visit(span)
        return
    with workers() as mapper:
        for _ in mapper(visit, spans):
            pass


def compile_loops(dtype: torch.dtype) -> None:
    """Compile or load the loops for weights of a dtype, so that no step has to wait for it.

    Args:
        dtype: the weights' dtype.

    Raises:
        DeltaLensError: numba cannot compile them.
    """
    with errors_from("numba", f"the loops for {dtype} cannot be compiled"):
        weight = torch.ones(64, dtype=dtype)
        none_kept, masked = PackedMask(64), torch.empty_like(weight)
        for before in (None, none_kept):
            mask_into(weight, none_kept, masked, before)
