"""Count the entries of a parameter that an optimizer step changed, which is what delta weight sync
transfers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from deltalens.gradients import Gradient, local_part, to_strided
from deltalens.numerics.bits import integer_of
from deltalens.numerics.masks import PackedMask

__all__ = ["Updates"]


class Updates:
    """A copy of the watched parameters from before a step, for comparison after it."""

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._nonzero: dict[str, PackedMask] = {}

    def copy_before(self, name: str, parameter: nn.Parameter) -> None:
        """Copy a parameter's bits.

        Args:
            name: the parameter's name.
            parameter: the parameter, before the step.
        """
        current = local_part(parameter)
        copy = self._before.get(name)
        if copy is None or (copy.shape, copy.dtype, copy.device) != (
            current.shape,
            current.dtype,
            current.device,
        ):
            copy = self._before[name] = torch.empty_like(current)
        copy.copy_(current)

    def before_step(self, gradients: Sequence[Gradient]) -> None:
        """Record which entries have a nonzero gradient.

        Args:
            gradients: the gradients of the step.
        """
        for gradient in gradients:
            # Flattened in the parameter's order, whatever the gradient's memory layout.
            grad = gradient.parameter.grad
            assert grad is not None
            nonzero = (to_strided(local_part(grad)) != 0).reshape(-1)
            self._nonzero[gradient.name] = PackedMask(nonzero.numel(), nonzero.device)
            self._nonzero[gradient.name].write(0, nonzero)

    def after_step(self, gradients: Sequence[Gradient]) -> dict[str, dict[str, float]]:
        """Compare the parameters with their copies.

        Args:
            gradients: the gradients of the step.

        Returns:
            Parameter name -> shares of all its entries: `bits_changed`, whose bits differ;
            `bf16_changed`, whose bits differ after rounding both to bf16; `stalled`, whose bits are
            the same although the gradient was not zero.
        """
        rows = {}
        for gradient in gradients:
            # A tensor without entries has no shares.
            entries = gradient.entries or math.nan
            old, new = self._before[gradient.name], local_part(gradient.parameter)
            integer = integer_of(new.dtype)
            same = (old.view(integer) == new.view(integer)).reshape(-1)
            nonzero = self._nonzero.pop(gradient.name).unpacked()
            rounded = old.bfloat16().view(torch.int16) != new.bfloat16().view(torch.int16)
            counts = torch.stack([(~same).sum(), rounded.sum(), (same & nonzero).sum()])
            for group in gradient.groups:
                dist.all_reduce(counts, group=group)
            changed, bf16_changed, stalled = counts.tolist()
            rows[gradient.name] = {
                "bits_changed": changed / entries,
                "bf16_changed": bf16_changed / entries,
                "stalled": stalled / entries,
            }
        return rows
