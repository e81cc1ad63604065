"""Gradient-Mask Tuning: in each step only the entries with the largest gradients are updated."""

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
from deltalens.numerics.rates import exact_rate, show_rate
from deltalens.numerics.selection import compile_loops

__all__ = ["GradientMask", "check_mask_ratio"]

Ratio = float | str | Fraction
OnNonfinite = Literal["raise", "skip", "pass"]
"""What to do about a NaN or an infinity in a gradient."""


class GradientMask(StepMask):
    """Gradient-Mask Tuning (arXiv 2406.15330, Algorithm 1) for any trainer.

    Before every optimizer step, the gradient entries below the exact threshold T_k are set to zero.
    Of n entries that are ranked together, the k = n - round(mask_ratio * n) largest stay, and all
    that tie with the last of them (Eq. 3). The mask is computed once per step, from the gradient
    that the optimizer sees: accumulated, unscaled, clipped, and reduced over ranks.

    Memory: one bit per entry (for `coverage`), and up to 300 KB per ranked unit while it is being
    ranked.

    Args:
        model: the model that is trained, as in `StepMask`.
        mask_ratio: the fraction that is masked out, in [0, 1); at 0 nothing is changed.
        optimizer: as in `StepMask`.
        scope: what is ranked together: the entries of one `tensor`, of one `layer` (a transformer
            block), or all (`global`).
        apply_to: as in `StepMask`.
        include: as in `StepMask`.
        exclude: as in `StepMask`.
        schedule: the mask ratio as a function of the step number (0-based), used instead of
            `mask_ratio`. Optimizers that step one after the other without a backward pass in
            between take one step together.
        first_step: number of the first step, if a training is resumed.
        on_nonfinite: what to do about a NaN or an infinity in a gradient: `raise` an error that
            names the tensor and the step, `skip` the optimizer step, or `pass` the unit's gradient
            on unmasked.

    Raises:
        DeltaLensError: an argument is invalid, raised before anything is hooked; or, in a step, a
            gradient is sparse, the scope ranks together gradients that several optimizers step one
            after the other, or the optimizer evaluates its closure several times (LBFGS).

    Example:
        >>> import torch
        >>> from deltalens import GradientMask
        >>> model = torch.nn.Linear(10, 10, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with GradientMask(model, mask_ratio=0.8) as mask:
        ...     model(torch.randn(4, 10)).square().sum().backward()
        ...     optimizer.step()
        >>> int(model.weight.grad.count_nonzero())  # the 20 largest of 100 entries
        20
        >>> mask.coverage()
        0.2
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
        self._current_step: object = self
        self.scope = check_scope(scope)
        self._units = StepUnits(self.scope, self._names)
        if on_nonfinite not in get_args(OnNonfinite):
            raise DeltaLensError(
                f"on_nonfinite={on_nonfinite!r}: choose one of {', '.join(get_args(OnNonfinite))}"
            )
        self._first_step, self._on_nonfinite = first_step, on_nonfinite
        self._thresholds: dict[str, tuple[int | Tensor, torch.dtype]] = {}
        cpu_dtypes = {p.dtype for _, p in named_parameters(model) if p.device.type == "cpu"}
        for dtype in cpu_dtypes.intersection(FLOATS):
            compile_loops(dtype)

    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Set the gradient entries below the thresholds to zero.

        Args:
            step: the optimizer step.
            gradients: the gradients of the step that are masked.
            kept: parameter name -> mask in which the entries that stay are marked.

        Raises:
            DeltaLensError: a gradient is not finite and `on_nonfinite` is `raise`; or several
                optimizers step gradients that are ranked together.
        """
        number = step.number + self._first_step
        self._units.check(step, gradients)
        if step.shared_step is not self._current_step:
            self._ratio = check_mask_ratio(self._ratio_at(number))
            self._current_step, self._thresholds = step.shared_step, {}
        ratio = self._ratio
        self._thresholds |= {gradient.name: (0, gradient.local.dtype) for gradient in gradients}
        if not ratio:
            for gradient in gradients:
                kept[gradient.name].fill()
            return
        with rank_gradients(step, gradients, self.scope, self._scratch) as ranking:
            nonfinite = ranking.nonfinite()
            if nonfinite and not self._handle_nonfinite(number, nonfinite, step):
                return
            bits = ranking.shrink(ratio, kept, nonfinite)
        dtypes = {gradient.name: gradient.local.dtype for gradient in gradients}
        self._thresholds |= {name: (threshold, dtypes[name]) for name, threshold in bits.items()}

    @property
    def thresholds(self) -> dict[str, float]:
        """Parameter name -> threshold T_k of its unit in the last step, a magnitude; 0 where
        nothing was masked. Reading it waits for an accelerator."""
        return {
            name: magnitude_of_bits(int(bits), dtype)
            for name, (bits, dtype) in self._thresholds.items()
        }

    def _settings(self) -> dict[str, object]:
        ratio = show_rate(self._ratio)
        return {"mask_ratio": ratio, "scope": self.scope, "apply_to": self.apply_to}

    def _handle_nonfinite(self, number: int, nonfinite: Sequence[str], step: GradientStep) -> bool:
        """Handle gradients that are not finite; returns whether the other units are to be
        masked."""
        if self._on_nonfinite == "raise":
            raise DeltaLensError(
                fault_list(
                    f"step {number}: the gradient is not finite (on_nonfinite='skip' skips such "
                    "steps) in",
                    nonfinite,
                )
            )
        if self._on_nonfinite == "skip":
            for group in step.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return False
        return True


def check_mask_ratio(ratio: Ratio) -> Fraction:
    """Parse a mask ratio exactly, as it was written.

    Args:
        ratio: the fraction masked out, as a number or as text.

    Returns:
        The exact fraction.

    Raises:
        DeltaLensError: the ratio is not a number in [0, 1).
    """
    exact = exact_rate(ratio, "mask_ratio")
    if exact >= 1:
        raise DeltaLensError(
            f"mask_ratio {ratio}: must be in [0, 1); it is the fraction masked out"
        )
    return exact
