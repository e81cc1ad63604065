"""Gradient-Mask Tuning: only the entries with the largest gradients are updated in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deltalens.errors import DeltaLensError, several
from deltalens.gradients import FLOATS, Gradient, GradientStep, every_parameter
from deltalens.methods.masking import StepMask
from deltalens.names import check_scope
from deltalens.numerics.bits import magnitude_of_bits
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.rates import exact_rate
from deltalens.numerics.selection import cpu as magnitudes
from deltalens.numerics.selection import device as on_device
from deltalens.numerics.workers import Each, over, workers
from deltalens.ranking import StepUnits, Unit, by_place, rank_at, reducer, units_of

__all__ = ["GradientMask", "mask_ratio_at"]

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
        self._ratio = ratio = mask_ratio_at(mask_ratio)
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
        here = {p.dtype for _, p in every_parameter(model) if p.device.type == "cpu"}
        for dtype in here.intersection(FLOATS):
            magnitudes.prepare(dtype)

    def mask(
        self, step: GradientStep, gradients: Sequence[Gradient], kept: Mapping[str, PackedMask]
    ) -> None:
        """Zero what is below the thresholds."""
        number = step.number + self._first_step
        self._units.check(step, gradients)
        if step.whole is not self._begun:
            self._ratio = mask_ratio_at(self._ratio_at(number))
            self._begun, self._thresholds = step.whole, {}
        ratio = self._ratio
        self._thresholds |= {one.name: (0, one.local.dtype) for one in gradients}
        if not ratio:
            for one in gradients:
                kept[one.name].fill()
            return
        here, there = by_place(units_of(gradients, self.scope))
        with workers() as each:
            scans = self._scan_here(step, here, each)
            batches = [_Batch(units) for units in there]
            broken = {name for name, one in scans.items() if one.nans or one.infinities}
            broken |= {name for batch in batches for name in batch.nonfinite()}
            if broken and not self._goes_on(number, sorted(broken), step):
                return
            for unit in [*here, *(unit for units in there for unit in units)]:
                if any(one.name in broken for one in unit):
                    for one in unit:
                        kept[one.name].fill()
            whole = [unit for unit in here if not any(one.name in broken for one in unit)]
            self._shrink_here(whole, scans, ratio, kept, each)
        for batch in batches:
            self._shrink_there(batch, broken, ratio, kept)

    @property
    def thresholds(self) -> dict[str, float]:
        """Tensor -> T_k of its unit in the last step; 0 where nothing was masked. On an accelerator
        reading it waits for the device."""
        return {
            name: magnitude_of_bits(int(bits), dtype)
            for name, (bits, dtype) in self._thresholds.items()
        }

    def _keep_threshold(self, unit: Unit, bits: int | Tensor) -> None:
        for one in unit:
            self._thresholds[one.name] = bits, one.local.dtype

    def _goes_on(self, number: int, broken: Sequence[str], step: GradientStep) -> bool:
        """What to do about gradients that are not finite; whether the others are to be masked."""
        if self._on_nonfinite == "raise":
            raise DeltaLensError(
                several(f"step {number}: the gradient is not finite in", broken)
                + "; on_nonfinite='skip' leaves such steps out"
            )
        if self._on_nonfinite == "skip":
            for group in step.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
            return False
        return True

    def _scan_here(
        self, step: GradientStep, units: Sequence[Unit], each: Each
    ) -> dict[str, magnitudes.Scan]:
        tensors = [one for unit in units for one in unit]
        found = over(each, lambda one: step.scan(one, self._scratch), tensors, _size)
        return dict(zip((one.name for one in tensors), found, strict=True))

    def _shrink_here(
        self,
        units: Sequence[Unit],
        scans: Mapping[str, magnitudes.Scan],
        ratio: Fraction,
        kept: Mapping[str, PackedMask],
        each: Each,
    ) -> None:
        bounds = {}
        for unit in units:
            some = [scans[one.name] for one in unit]
            (bound,) = magnitudes.boundaries(some, [rank_at(unit, ratio)])
            bounds.update(dict.fromkeys((one.name for one in unit), bound))

        def shrink(one: Gradient) -> magnitudes.Shrunk:
            found, bound = scans[one.name], bounds[one.name]
            return magnitudes.shrink(
                one.local, one.scale, found, bound, kept[one.name], self._scratch
            )

        tensors = [one for unit in units for one in unit]
        names = [one.name for one in tensors]
        shrunk = dict(zip(names, over(each, shrink, tensors, _size), strict=True))
        for unit in units:
            bits = magnitudes.settle_shrunk(
                [one.local for one in unit],
                [shrunk[one.name] for one in unit],
                bounds[unit[0].name],
                [kept[one.name] for one in unit],
            )
            self._keep_threshold(unit, bits)

    def _shrink_there(
        self, batch: _Batch, broken: set[str], ratio: Fraction, kept: Mapping[str, PackedMask]
    ) -> None:
        """The same on an accelerator or in shards, without waiting for the device."""
        bits = batch.thresholds(ratio)
        for place, unit in enumerate(batch.units):
            if any(one.name in broken for one in unit):
                continue
            self._keep_threshold(unit, bits[place, 0])
            for one, part in zip(unit, batch.parts[place], strict=True):
                on_device.shrink(part, bits[place, 0], kept[one.name])


class _Batch:
    """Units of one dtype, device and sharding."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self.parts = [[on_device.Part(one.local, one.scale) for one in unit] for unit in units]
        self._reduce = reducer(units[0][0])
        self._scanned = on_device.scan([p for unit in self.parts for p in unit], self._reduce)

    def nonfinite(self) -> list[str]:
        """Tensors that hold a NaN or an infinity; the one time that the device is waited for."""
        counts = (self._scanned.nans + self._scanned.infinities).tolist()
        names = [one.name for unit in self.units for one in unit]
        return [name for name, count in zip(names, counts, strict=True) if count]

    def thresholds(self, ratio: Fraction) -> Tensor:
        """The magnitude bits of T_k of each unit: int64, (U, 1)."""
        sizes = [len(unit) for unit in self.units]
        prefixes = torch.stack([some.sum(0) for some in self._scanned.prefixes.split(sizes)])
        ranks = [[rank_at(unit, ratio)] for unit in self.units]
        return on_device.thresholds(self.parts, prefixes, ranks, self._reduce)


def _size(one: Gradient) -> int:
    return one.local.numel()


def mask_ratio_at(ratio: Ratio) -> Fraction:
    """A mask ratio as it was typed.

    Raises:
        DeltaLensError: it is outside [0, 1).
    """
    exact = exact_rate(ratio)
    if exact >= 1:
        raise DeltaLensError(f"mask ratio {ratio}: in [0, 1), the fraction masked out")
    return exact
