"""Edit weights in place under a mask: revert them to the base, set them to zero, or restore
them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import cast_once, integer_of
from deltalens.numerics.kernels import select
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.scratch import Scratch

__all__ = ["restore_outside", "revert_to_base", "zero_outside"]


def revert_to_base(
    ft: Tensor,
    base: Tensor,
    selected: Tensor,
    *,
    rescale: Fraction | None = None,
    out: Tensor | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """Revert the selected entries to the base, and keep the others as in the fine-tune, bit for
    bit.

    Args:
        ft: a chunk of the fine-tune.
        base: the same chunk of the base; cast once to the fine-tune's dtype.
        selected: bool mask of the same shape, true where entries are reverted.
        rescale: the drop rate r, if kept deltas are to be divided by 1 - r (DARE, Yu et al. 2024,
            Eq. 2): a kept entry is then base + delta / (1 - r), computed in fp64 and rounded once.
        out: where to write, of the fine-tune's dtype; may be `ft` itself; None allocates a tensor.
        scratch: memory for intermediate results.

    Returns:
        `out`.
    """
    kept = ft
    if rescale is not None and 0 < rescale < 1:
        wide = base.double()
        stretched = wide.add(ft.double() - wide, alpha=float(1 / (1 - rescale)))
        kept = cast_once(stretched, ft.dtype)
    if out is None:
        out = torch.empty_like(ft)
    return select(selected, cast_once(base, ft.dtype), kept, out, scratch or Scratch())


def zero_outside(values: Tensor, kept: PackedMask) -> None:
    """Set every entry outside a mask to zero, in place.

    Args:
        values: 1-D, contiguous, on the mask's device.
        kept: the mask, true where an entry stays.
    """
    if values.device.type != "cpu":
        values.masked_fill_(~kept.unpacked(), 0)
        return
    from deltalens.numerics import compiled_masks

    compiled_masks.zero_outside(_integers(values), kept.words.view(np.uint32))


def restore_outside(values: Tensor, before: Tensor, kept: PackedMask) -> None:
    """Restore the original value of every entry outside a mask, in place and bit for bit.

    Args:
        values: 1-D, contiguous, on the mask's device.
        before: the original values, likewise.
        kept: the mask, true where an entry keeps its new value.
    """
    if values.device.type != "cpu":
        values.copy_(torch.where(kept.unpacked(), values, before))
        return
    from deltalens.numerics import compiled_masks

    compiled_masks.restore_outside(_integers(values), _integers(before), kept.words.view(np.uint32))


def _integers(values: Tensor) -> np.ndarray:
    view: np.ndarray = values.view(integer_of(values.dtype)).numpy()
    return view
