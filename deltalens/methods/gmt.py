"""Gradient-Mask Tuning: only the entries with the largest gradients are updated in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deltalens.errors import DeltaLensError, fault_list
from deltalens.gradients import FLOATS, Gradient, GradientStep, named_parameters
from deltalens.gradients.ranked import rank_gradients
from deltalens.gradients.step_units import StepUnits
from deltalens.methods.masking import StepMask
from deltalens.names import check_scope
from deltalens.numerics.bits import magnitude_of_bits
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.rates import exact_rate
from deltalens.numerics.selection import compile_loops

__all__ = ["GradientMask", "check_mask_ratio"]

Ratio = float | str | Fraction
OnNonfinite = Literal["raise", "skip", "pass"]


class GradientMask(StepMask):
    """Gradient-Mask Tuning (arXiv 2406.15330, Algorithm 1) for any trainer.

    Before every optimizer step the entries whose gradient is below the exact threshold T_k are made
    zero; k = n - round(mask_ratio * n) of the n entries ranked together stay, and what ties with
    the last of them (Eq. 3). The mask is taken once per step, from the gradient that the optimizer
    sees: accumulated, unscaled, clipped, reduced over ranks.

    Args:
        model, optimizer, include, exclude, apply_to: as in `StepMask`.
        mask_ratio: the fraction masked out, in [0, 1); at 0 nothing is touched.
        scope: what is ranked together: `tensor`, `layer` (a transformer block) or `global`.
        schedule: mask ratio as a function of the step's number (0-based), instead of `mask_ratio`.
            Optimizers that step one after the other, without a backward pass in between, take one
            step together.
        first_step: the number of the first step, where a training goes on.
        on_nonfinite: what a NaN or an infinity in a gradient leads to: `raise` an error that names
            tensor and step, `skip` the optimizer's step, or `pass` the gradient on unmasked.

    Raises:
        DeltaLensError: bad arguments, before anything is hooked. In a step: a sparse gradient; a
            scope that ranks together what several optimizers step one after the other; an optimizer
            that evaluates its closure several times (LBFGS).

    Memory: one bit per entry (`coverage`), and up to 300 KB per ranked unit while it is worked on.
    """

    def __init__(
        self,
        model: nn.Module,
        mask_ratio: Ratio = 0.2,
        *,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        scope: str = "tensor",
        apply_to: str = "gradient",
        include: str | None = None,
        exclude: str | None = None,
        schedule: Callable[[int], Ratio] | None = None,
        first_step: int = 0,
        on_nonfinite: str = "raise",
    ) -> None:
        super().__init__(
            model, optimizer=optimizer, apply_to=apply_to, include=include, exclude=exclude
        )
        self._ratio = ratio = check_mask_ratio(mask_ratio)
        self._ratio_at = (lambda number: ratio) if schedule is None else schedule
        self._begun: object = self
        self.scope = check_scope(scope)
        self._units = StepUnits(self.scope, self._names)
        if on_nonfinite not in get_args(OnNonfinite):
            raise DeltaLensError(
                f"on_nonfinite={on_nonfinite!r}: choose one of {', '.join(get_args(OnNonfinite))}"
            )
        self._first_step, self._on_nonfinite = first_step, on_nonfinite
        self._thresholds: dict[str, tuple[int | Tensor, torch.dtype]] = {}
        here = {p.dtype for _, p in named_parameters(model) if p.device.type == "cpu"}
        for dtype in here.intersection(FLOATS):
            compile_loops(dtype)

    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Zero what is below the thresholds."""
        number = step.number + self._first_step
        self._units.check(step, gradients)
        if step.whole is not self._begun:
            self._ratio = check_mask_ratio(self._ratio_at(number))
            self._begun, self._thresholds = step.whole, {}
        ratio = self._ratio
        self._thresholds |= {one.name: (0, one.local.dtype) for one in gradients}
        if not ratio:
            for one in gradients:
                kept[one.name].fill()
            return
        with rank_gradients(step, gradients, self.scope, self._scratch) as found:
            broken = found.nonfinite()
            if broken and not self._goes_on(number, broken, step):
                return
            bits = found.shrink(ratio, kept, broken)
        dtypes = {one.name: one.local.dtype for one in gradients}
        self._thresholds |= {name: (one, dtypes[name]) for name, one in bits.items()}

    @property
    def thresholds(self) -> dict[str, float]:
        """Tensor -> T_k of its unit in the last step; 0 where nothing was masked. On an accelerator
        reading it waits for the device."""
        return {
            name: magnitude_of_bits(int(bits), dtype)
            for name, (bits, dtype) in self._thresholds.items()
        }

    def _goes_on(self, number: int, broken: Sequence[str], step: GradientStep) -> bool:
        """What to do about gradients that are not finite; whether the others are to be masked."""
        if self._on_nonfinite == "raise":
            raise DeltaLensError(
                fault_list(f"step {number}: the gradient is not finite in", broken)
                + "; on_nonfinite='skip' leaves such steps out"
            )
        if self._on_nonfinite == "skip":
            for group in step.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return False
        return True


def check_mask_ratio(ratio: Ratio) -> Fraction:
    """A mask ratio as it was typed.

    Raises:
        DeltaLensError: it is outside [0, 1).
    """
    exact = exact_rate(ratio)
    if exact >= 1:
        raise DeltaLensError(f"mask ratio {ratio}: in [0, 1), the fraction masked out")
    return exact
