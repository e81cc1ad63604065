"""GradientProbe: what the gradients of a training look like, and which entries stay on top."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from deltalens.errors import DeltaLensError
from deltalens.gradients import (
    FLOATS,
    Gradient,
    GradientStep,
    Subscriber,
    UnrankableGradients,
    choose_parameters,
    named_parameters,
)
from deltalens.gradients.ranked import (
    Survey,
    TopEntries,
    fetch_surveys,
    rank_gradients,
    reducer_for,
)
from deltalens.gradients.step_units import StepUnits
from deltalens.io.records import RunWriter
from deltalens.names import check_scope
from deltalens.numerics.masks import PackedMask, compare
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import compile_loops
from deltalens.probes.columns import QUANTILES, columns_of, histograms_of, mask_rows, tensor_row
from deltalens.probes.history import History, LearnedMasks
from deltalens.probes.sinks import Sink, make_sink
from deltalens.probes.updates import Updates

__all__ = ["GradientProbe"]

_Key = tuple[str, float]
"""A tensor's name and a mask ratio."""
T = TypeVar("T")


@dataclass(frozen=True)
class _Measured:
    """What was measured before an optimizer's part of a step."""

    number: int
    surveys: list[Survey]
    learned: list[dict[str, float | str]]
    """Rows of learned masks."""


class GradientProbe(Subscriber):
    """Log gradient-magnitude histograms, thresholds and mask overlap while a model trains.

    Hooks the optimizer's step, where the gradient is final: accumulated, clipped, unscaled. Nothing
    of the training changes: parameters are bit-identical with and without it. Under DDP the first
    process alone measures; sharded gradients (FSDP2) are measured by all, and logged by the first.

    Args:
        model: whose gradients; wrapped later or not.
        log_dir: the run's folder (`docs/records.md`); must be new.
        optimizer: only steps of this one, or these; by default every optimizer that steps
            parameters of the model, whenever it is made.
        every: log every so many steps; or a function from the step's number (0-based) to whether
            it is logged. Optimizers that step one after the other, without a backward pass in
            between, take one step together.
        mask_ratios: fractions masked out, in [0, 1), at which thresholds and masks are taken
            (GMT, Eq. 3).
        scope: what is ranked together: `tensor`, `layer` (a transformer block) or `global`.
        include, exclude: regular expressions over parameter names.
        overlap: compare the masks of the top entries over steps. Memory: three bits per entry and
            ratio, four with a reference.
        updates: log how many entries' stored bits a step changed. Memory: a copy of the watched
            parameters.
        sinks: a TensorBoard `SummaryWriter`, a Weights & Biases run, or both.
        reference: a mask to compare with as well: parameter name -> bool tensor of its shape.
        learned: masks of weights that the training learns, as they are now:
            `MaskTuning.packed_masks`. Memory: three bits per entry.
        first_step: the number of the first step, where a training goes on.

    Raises:
        DeltaLensError: bad arguments, before anything is hooked.
    """

    def __init__(
        self,
        model: nn.Module,
        log_dir: str | Path,
        *,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        every: int | Callable[[int], bool] = 1,
        mask_ratios: Sequence[float] = (0.2, 0.5, 0.9),
        scope: str = "tensor",
        include: str | None = None,
        exclude: str | None = None,
        overlap: bool = True,
        updates: bool = False,
        sinks: Sequence[Any] = (),
        reference: Mapping[str, Tensor] | None = None,
        learned: Callable[[], Mapping[str, PackedMask]] | None = None,
        first_step: int = 0,
    ) -> None:
        super().__init__(model, optimizer)
        self.log_dir = Path(log_dir)
        self._due = _schedule(every)
        self._ratios = _ratios(mask_ratios)
        self._scope = check_scope(scope)
        self._names = choose_parameters(model, include, exclude, "GradientProbe")
        self._units = StepUnits(self._scope, self._names)
        self._passed_over = UnrankableGradients(
            "GradientProbe cannot rank these, and passes them over"
        )
        self._overlap, self._first_step = overlap, first_step
        self._sinks: list[Sink] = [make_sink(sink) for sink in sinks]
        self._reference = dict(reference or {})
        self._updates = Updates() if updates else None
        self._learned = LearnedMasks(learned) if learned is not None else None
        self._spec = {
            "kind": "gradients",
            "every": every if isinstance(every, int) else getattr(every, "__name__", repr(every)),
            "mask_ratios": list(self._ratios),
            "scope": self._scope,
            "include": include,
            "exclude": exclude,
            "overlap": overlap,
            "updates": updates,
            "learned": learned is not None,
        }
        self._scratch = Scratch()
        self._history: dict[tuple[str, float], History] = {}
        self._begun: tuple[object, bool] = (self, False)
        """The last step, and whether it is logged."""
        self._writer: RunWriter | None = None
        self._logging = False
        self._told_nan: set[str] = set()

    def attach(self) -> Self:
        """Begin to log.

        Raises:
            DeltaLensError: attached already; the folder holds something; a given optimizer does
                not hold the model's parameters.
        """
        if self.steps and not self._attached:
            raise DeltaLensError(f"{self.log_dir}: this probe has logged its run; make a new one")
        opened = not self._attached and _is_first()
        if opened:
            self._writer = RunWriter(self.log_dir, self._spec)
        try:
            watched = [p for name, p in named_parameters(self.model) if name in self._names]
            here = {p.dtype for p in watched if p.device.type == "cpu"}
            for dtype in here.intersection(FLOATS):
                compile_loops(dtype)
            super().attach()
        except BaseException:
            if opened and self._writer is not None:
                self._writer.abandon()
            raise
        self._logging = True
        return self

    def close(self) -> None:
        """Close the run."""
        if self._writer is not None and self._logging:
            self._guarded(self._writer.close)
        self._logging = False

    def open_step(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Keep the parameters, if what the step does to them is logged."""
        if self._updates is not None and self._logging and _is_first():
            self._guarded(lambda: self._keep(parameters))

    def before_step(self, step: GradientStep) -> _Measured | None:
        """Measure the gradients, if this step is logged.

        Returns:
            What was measured.
        """
        number = step.number + self._first_step
        if not self._logging:
            return None
        begins = self._begun[0] is not step.whole
        if begins:
            self._begun = step.whole, self._due(number)
        if not self._begun[1]:
            return None
        begun = time.perf_counter()
        measured = self._guarded(lambda: self._measure(number, step, begins))
        self.seconds += time.perf_counter() - begun
        return measured

    def after_step(self, step: GradientStep, held: _Measured | None) -> None:
        """Look at what the step did, and record it."""
        if held is None or not self._logging:
            return
        begun = time.perf_counter()
        self._guarded(lambda: self._record(held))
        self.count(step)
        self.seconds += time.perf_counter() - begun

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """A fault in logging ends the logging, never the training."""
        try:
            return work()
        except Exception as error:
            self._logging = False
            warnings.warn(
                f"GradientProbe stops logging to {self.log_dir}: {type(error).__name__}: {error}",
                stacklevel=4,
            )
            return None

    def _keep(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        assert self._updates is not None
        for name, parameter in parameters:
            if name in self._names:
                self._updates.keep(name, parameter)

    def _measure(self, number: int, step: GradientStep, begins: bool) -> _Measured | None:
        watched = self._passed_over.sort_out(
            one for one in step.gradients if one.name in self._names
        )
        sharded = any(gradient.groups for gradient in watched)
        if not watched or not (sharded or _is_first()):
            return None
        self._units.check(step, watched)
        fractions = list(QUANTILES.values())
        with rank_gradients(step, watched, self._scope, self._scratch, fractions) as found:
            surveys = found.survey(self._ratios)
        if self._updates is not None:
            if not step.opened:
                self._keep([(one.name, one.parameter) for one in watched])
            self._updates.before(watched)
        learned = self._learned.rows(number) if self._learned is not None and begins else []
        return _Measured(number, surveys, learned)

    def _warn_of_nans(self, number: int, surveys: Sequence[Survey]) -> None:
        for one in surveys:
            if one.numbers.nans and one.gradient.name not in self._told_nan:
                self._told_nan.add(one.gradient.name)
                warnings.warn(
                    f"step {number}: {one.numbers.nans:,} NaN in the gradient of "
                    f"{one.gradient.name!r}; its masks are left out",
                    stacklevel=6,
                )

    def _record(self, measured: _Measured) -> None:
        number, surveys = measured.number, measured.surveys
        changes = self._updates.after([one.gradient for one in surveys]) if self._updates else {}
        spec = self._comparisons(surveys)
        rows = fetch_surveys(surveys, self._compare(spec))
        self._warn_of_nans(number, surveys)
        valid = {(one.gradient.name, ratio) for one in surveys for ratio in one.tops}
        compared = {
            key: self._history[key].take(gradient.entries, top.mask, row)
            for (key, gradient, top), row in zip(spec, rows, strict=True)
            if key in valid
        }
        writer = self._writer
        if writer is None:
            return
        writer.add("histograms", histograms_of(number, surveys))
        writer.add("tensors", columns_of([tensor_row(number, one, changes) for one in surveys]))
        if self._ratios:
            rows_of_masks = mask_rows(number, surveys, self._ratios, compared)
            writer.add("masks", columns_of(rows_of_masks))
        if measured.learned:
            writer.add("learned", columns_of(measured.learned))
        for sink in self._sinks:
            sink.log(number, surveys)
        self._write_facts(writer, surveys)
        writer.flush_if_due()

    def _write_facts(self, writer: RunWriter, surveys: Sequence[Survey]) -> None:
        known = writer.facts.setdefault("tensors", {})
        new = {one.gradient.name: one.gradient.entries for one in surveys} | known
        passed_over = dict(self._passed_over.reasons)
        if len(new) > len(known) or passed_over != writer.facts.get("passed_over", {}):
            writer.facts["tensors"] = known | new
            if passed_over:
                writer.facts["passed_over"] = passed_over
            writer.write_manifest()

    def _comparisons(self, surveys: Sequence[Survey]) -> list[tuple[_Key, Gradient, TopEntries]]:
        if not self._overlap:
            return []
        return [
            ((one.gradient.name, ratio), one.gradient, top)
            for one in surveys
            for ratio, top in one.tops.items()
        ]

    def _compare(self, spec: Sequence[tuple[_Key, Gradient, TopEntries]]) -> list[Tensor]:
        """What each mask has in common with others, over all ranks: `compare`'s rows."""
        rows: list[Tensor] = []
        for key, gradient, top in spec:
            known = self._history.get(key)
            if known is None or not known.fits(top.mask):
                ever = PackedMask(top.mask.size, top.mask.bytes.device)
                self._history[key] = History(ever, self._reference_of(gradient))
            history = self._history[key]
            rows.append(compare(top.mask, history.others(), history.ever))
        for groups in dict.fromkeys(g.groups for _, g, _ in spec if g.groups):
            places = [place for place, (_, g, _) in enumerate(spec) if g.groups == groups]
            together = torch.stack([rows[place] for place in places])
            reduce = reducer_for(spec[places[0]][1])
            assert reduce is not None
            reduce(together)
            for place, row in zip(places, together, strict=True):
                rows[place] = row
        return rows

    def _reference_of(self, gradient: Gradient) -> PackedMask | None:
        given = self._reference.get(gradient.name)
        if given is None:
            return None
        if given.numel() != gradient.local.numel():
            raise DeltaLensError(
                f"{gradient.name!r}: the reference mask has {given.numel():,} entries, the "
                f"gradient {gradient.local.numel():,}"
            )
        device = gradient.local.device
        packed = PackedMask(given.numel(), device)
        packed.write(0, given.detach().to(device).reshape(-1).bool())
        return packed


def _is_first() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _schedule(every: int | Callable[[int], bool]) -> Callable[[int], bool]:
    if callable(every):
        return every
    if isinstance(every, bool) or every < 1:
        raise DeltaLensError(f"every={every}: at least 1, or a function from step to bool")
    return lambda number: number % every == 0


def _ratios(mask_ratios: Sequence[float]) -> tuple[float, ...]:
    wrong = [ratio for ratio in mask_ratios if not 0 <= ratio < 1]
    if wrong:
        raise DeltaLensError(f"mask ratio {wrong[0]}: in [0, 1), the fraction masked out")
    return tuple(dict.fromkeys(float(Fraction(str(ratio))) for ratio in mask_ratios))
