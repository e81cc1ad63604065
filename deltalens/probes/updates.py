"""How many of a parameter's entries an optimizer step moved: what delta weight sync depends on."""

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
    """A copy of the watched parameters from before a step, to compare with after it."""

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._moving: dict[str, PackedMask] = {}

    def keep(self, name: str, parameter: nn.Parameter) -> None:
        """Keep the stored bits."""
        now = local_part(parameter)
        kept = self._before.get(name)
        if kept is None or (kept.shape, kept.dtype, kept.device) != (
            now.shape,
            now.dtype,
            now.device,
        ):
            kept = self._before[name] = torch.empty_like(now)
        kept.copy_(now)

    def before(self, gradients: Sequence[Gradient]) -> None:
        """Keep which entries have a gradient at all."""
        for one in gradients:
            # In the order of the parameter, not of the gradient's memory.
            grad = one.parameter.grad
            assert grad is not None
            moving = (to_strided(local_part(grad)) != 0).reshape(-1)
            self._moving[one.name] = PackedMask(moving.numel(), moving.device)
            self._moving[one.name].write(0, moving)

    def after(self, gradients: Sequence[Gradient]) -> dict[str, dict[str, float]]:
        """For each tensor, shares of all its entries: `bits_changed`; `bf16_changed`, had they been
        rounded to bf16 before and after; `stalled`, whose gradient was not zero and whose bits
        stayed."""
        rows = {}
        for one in gradients:
            # A tensor without entries has no shares.
            entries = one.entries or math.nan
            old, new = self._before[one.name], local_part(one.parameter)
            integer = integer_of(new.dtype)
            same = (old.view(integer) == new.view(integer)).reshape(-1)
            moving = self._moving.pop(one.name).unpacked()
            rounded = old.bfloat16().view(torch.int16) != new.bfloat16().view(torch.int16)
            counts = torch.stack([(~same).sum(), rounded.sum(), (same & moving).sum()])
            for group in one.groups:
                dist.all_reduce(counts, group=group)
            changed, narrow, stalled = counts.tolist()
            rows[one.name] = {
                "bits_changed": changed / entries,
                "bf16_changed": narrow / entries,
                "stalled": stalled / entries,
            }
        return rows
