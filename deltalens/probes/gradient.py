"""GradientProbe: log what the gradients of a training look like, and which entries stay on top."""

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
from deltalens.gradients.ranked import rank_gradients, reducer_for
from deltalens.gradients.step_units import StepUnits
from deltalens.gradients.surveys import Survey, TopEntries, fetch_surveys
from deltalens.io.records import RunWriter
from deltalens.names import check_scope
from deltalens.numerics.masks import PackedMask, compare
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import compile_loops
from deltalens.probes.columns import QUANTILES, columns_of, histograms_of, mask_rows, tensor_row
from deltalens.probes.history import History, LearnedMasks, packed_reference
from deltalens.probes.sinks import Sink, make_sink
from deltalens.probes.updates import Updates

__all__ = ["GradientProbe"]

_Key = tuple[str, float]
"""A parameter's name and a mask ratio."""
T = TypeVar("T")


@dataclass(frozen=True)
class _Measured:
    """What was measured before an optimizer's part of a step."""

    number: int
    surveys: list[Survey]
    learned: list[dict[str, float | str]]
    """Rows of the table `learned`."""


class GradientProbe(Subscriber):
    """Log gradient-magnitude histograms, thresholds and mask overlap while a model trains.

    The probe hooks the optimizer's step, where the gradient is final: accumulated, clipped and
    unscaled. It changes nothing: parameters are bit-identical with and without it. Under DDP the
    first process alone measures; sharded gradients (FSDP2) are measured by all processes and logged
    by the first. An error while logging ends the logging with a warning, never the training.

    Memory: with `overlap`, three bits per entry and mask ratio, four with a reference; with
    `updates`, a copy of the watched parameters; with `learned`, three bits per entry.

    Args:
        model: the model that is trained; it may be wrapped (DDP, FSDP2, torch.compile) before or
            after.
        log_dir: the run's folder (`docs/records.md`); it must be new.
        optimizer: log only the steps of this optimizer, or of these; by default those of every
            optimizer that steps parameters of the model, whenever it is made.
        every: log every this many steps, or a function from the step's number (0-based) to whether
            it is logged. Optimizers that step one after the other without a backward pass in
            between take one step together.
        mask_ratios: fractions masked out, in [0, 1), at which thresholds and masks are computed
            (GMT, Eq. 3).
        scope: what is ranked together: the entries of one `tensor`, of one `layer` (a transformer
            block), or all (`global`).
        include: log only parameters whose name matches this regular expression.
        exclude: do not log parameters whose name matches this regular expression.
        overlap: compare the masks of the top entries between steps.
        updates: log how many entries' stored bits each step changed.
        sinks: a TensorBoard `SummaryWriter`, a Weights & Biases run, or both.
        reference: masks to compare with as well: parameter name -> bool tensor of its shape.
        learned: a function that returns the current masks of weights which the training learns,
            such as `MaskTuning.packed_masks`.
        first_step: number of the first step, if a training is resumed.

    Raises:
        DeltaLensError: an argument is invalid; raised before anything is hooked.

    Example:
        >>> import torch
        >>> from deltalens import GradientProbe, load_run
        >>> model = torch.nn.Linear(8, 8)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with GradientProbe(model, "my-run", every=2, mask_ratios=[0.5]) as probe:
        ...     for _ in range(4):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(4, 8)).square().sum().backward()
        ...         optimizer.step()
        >>> masks = load_run("my-run").masks
        >>> masks[["step", "tensor", "mask_ratio", "kept"]].astype({"kept": int})
           step  tensor  mask_ratio  kept
        0     0  weight         0.5    32
        1     0    bias         0.5     4
        2     2  weight         0.5    32
        3     2    bias         0.5     4
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
        self._is_due = _schedule(every)
        self._ratios = _ratios(mask_ratios)
        self._scope = check_scope(scope)
        self._names = choose_parameters(model, include, exclude, "GradientProbe")
        self._units = StepUnits(self._scope, self._names)
        self._unrankable = UnrankableGradients(
            "GradientProbe cannot rank these gradients and skips them"
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
        self._current_step: tuple[object, bool] = (self, False)
        """The last step that was seen, and whether it is logged."""
        self._writer: RunWriter | None = None
        self._logging = False
        self._warned_of_nan: set[str] = set()

    def attach(self) -> Self:
        """Begin to log.

        Returns:
            The probe itself.

        Raises:
            DeltaLensError: the probe is attached already or has logged a run, the folder is not
                empty, or a given optimizer holds none of the model's parameters.
        """
        if self.steps and not self._attached:
            raise DeltaLensError(
                f"{self.log_dir}: this probe has logged its run already; make a new one"
            )
        opened = not self._attached and _is_first()
        if opened:
            self._writer = RunWriter(self.log_dir, self._spec)
        try:
            watched = [p for name, p in named_parameters(self.model) if name in self._names]
            cpu_dtypes = {p.dtype for p in watched if p.device.type == "cpu"}
            for dtype in cpu_dtypes.intersection(FLOATS):
                compile_loops(dtype)
            super().attach()
        except BaseException:
            if opened and self._writer is not None:
                self._writer.abandon()
            raise
        self._logging = True
        return self

    def close(self) -> None:
        """Close the run's folder."""
        if self._writer is not None and self._logging:
            self._guarded(self._writer.close)
        self._logging = False

    def open_step(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Copy the parameters before a step that computes its gradients itself, if updates are
        logged.

        Args:
            parameters: name and parameter of all that the step may move.
        """
        if self._updates is not None and self._logging and _is_first():
            self._guarded(lambda: self._copy_parameters(parameters))

    def before_step(self, step: GradientStep) -> _Measured | None:
        """Measure the gradients, if the step is logged.

        Args:
            step: the optimizer step; its gradients are final.

        Returns:
            The measurements, for `after_step`; None if the step is not logged.
        """
        number = step.number + self._first_step
        if not self._logging:
            return None
        is_new = self._current_step[0] is not step.shared_step
        if is_new:
            self._current_step = step.shared_step, self._is_due(number)
        if not self._current_step[1]:
            return None
        started = time.perf_counter()
        measured = self._guarded(lambda: self._measure(number, step, is_new))
        self.seconds += time.perf_counter() - started
        return measured

    def after_step(self, step: GradientStep, state: _Measured | None) -> None:
        """Measure what the step changed, and record the step.

        Args:
            step: the optimizer step, which has been taken.
            state: what `before_step` returned.
        """
        if state is None or not self._logging:
            return
        started = time.perf_counter()
        self._guarded(lambda: self._record(state))
        self.count_step(step)
        self.seconds += time.perf_counter() - started

    def _settings(self) -> dict[str, object]:
        ratios = list(self._ratios) if len(self._ratios) < 6 else f"{len(self._ratios)} ratios"
        return {"log_dir": str(self.log_dir)[-200:], "scope": self._scope, "mask_ratios": ratios}

    def _guarded(self, work: Callable[[], T]) -> T | None:
        """Run `work`; an error in it ends the logging, never the training."""
        try:
            return work()
        except Exception as error:
            self._logging = False
            warnings.warn(
                f"GradientProbe stops logging to {self.log_dir} (the training goes on): "
                f"{type(error).__name__}: {error}",
                stacklevel=4,
            )
            return None

    def _copy_parameters(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        assert self._updates is not None
        for name, parameter in parameters:
            if name in self._names:
                self._updates.copy_before(name, parameter)

    def _measure(self, number: int, step: GradientStep, is_new: bool) -> _Measured | None:
        watched = self._unrankable.rankable(
            gradient for gradient in step.gradients if gradient.name in self._names
        )
        sharded = any(gradient.groups for gradient in watched)
        if not watched or not (sharded or _is_first()):
            return None
        self._units.check(step, watched)
        fractions = list(QUANTILES.values())
        with rank_gradients(step, watched, self._scope, self._scratch, fractions) as ranking:
            surveys = ranking.survey(self._ratios)
        if self._updates is not None:
            if not step.announced:
                self._copy_parameters([(gradient.name, gradient.parameter) for gradient in watched])
            self._updates.before_step(watched)
        learned = self._learned.rows(number) if self._learned is not None and is_new else []
        return _Measured(number, surveys, learned)

    def _warn_of_nans(self, number: int, surveys: Sequence[Survey]) -> None:
        for survey in surveys:
            if survey.stats.nans and survey.gradient.name not in self._warned_of_nan:
                self._warned_of_nan.add(survey.gradient.name)
                warnings.warn(
                    f"step {number}: {survey.stats.nans:,} NaN in the gradient of "
                    f"{survey.gradient.name!r}; no masks are logged for it",
                    stacklevel=6,
                )

    def _record(self, measured: _Measured) -> None:
        number, surveys = measured.number, measured.surveys
        gradients = [survey.gradient for survey in surveys]
        changes = self._updates.after_step(gradients) if self._updates else {}
        pairs = self._comparisons(surveys)
        rows = fetch_surveys(surveys, self._compare(pairs))
        self._warn_of_nans(number, surveys)
        valid = {(survey.gradient.name, ratio) for survey in surveys for ratio in survey.tops}
        compared = {
            key: self._history[key].record(gradient.entries, top.mask, row)
            for (key, gradient, top), row in zip(pairs, rows, strict=True)
            if key in valid
        }
        writer = self._writer
        if writer is None:
            return
        writer.add("histograms", histograms_of(number, surveys))
        tensor_rows = [tensor_row(number, survey, changes) for survey in surveys]
        writer.add("tensors", columns_of(tensor_rows))
        if self._ratios:
            writer.add("masks", columns_of(mask_rows(number, surveys, self._ratios, compared)))
        if measured.learned:
            writer.add("learned", columns_of(measured.learned))
        for sink in self._sinks:
            sink.log(number, surveys)
        self._write_facts(writer, surveys)
        writer.flush_if_due()

    def _write_facts(self, writer: RunWriter, surveys: Sequence[Survey]) -> None:
        recorded = writer.facts.setdefault("tensors", {})
        tensors = {survey.gradient.name: survey.gradient.entries for survey in surveys} | recorded
        unrankable = dict(self._unrankable.reasons)
        if len(tensors) > len(recorded) or unrankable != writer.facts.get("passed_over", {}):
            writer.facts["tensors"] = recorded | tensors
            if unrankable:
                writer.facts["passed_over"] = unrankable
            writer.write_manifest()

    def _comparisons(self, surveys: Sequence[Survey]) -> list[tuple[_Key, Gradient, TopEntries]]:
        if not self._overlap:
            return []
        return [
            ((survey.gradient.name, ratio), survey.gradient, top)
            for survey in surveys
            for ratio, top in survey.tops.items()
        ]

    def _compare(self, pairs: Sequence[tuple[_Key, Gradient, TopEntries]]) -> list[Tensor]:
        """Count what each mask shares with earlier ones, over all ranks: the rows of
        `masks.compare`."""
        rows: list[Tensor] = []
        for key, gradient, top in pairs:
            history = self._history.get(key)
            if history is None or not history.comparable(top.mask):
                ever = PackedMask(top.mask.size, top.mask.bytes.device)
                reference = packed_reference(self._reference.get(gradient.name), gradient)
                history = self._history[key] = History(ever, reference)
            rows.append(compare(top.mask, history.others(), history.ever))
        for groups in dict.fromkeys(g.groups for _, g, _ in pairs if g.groups):
            indices = [index for index, (_, g, _) in enumerate(pairs) if g.groups == groups]
            stacked = torch.stack([rows[index] for index in indices])
            reduce = reducer_for(pairs[indices[0]][1])
            assert reduce is not None
            reduce(stacked)
            for index, row in zip(indices, stacked, strict=True):
                rows[index] = row
        return rows


def _is_first() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _schedule(every: int | Callable[[int], bool]) -> Callable[[int], bool]:
    if callable(every):
        return every
    if isinstance(every, bool) or every < 1:
        raise DeltaLensError(
            f"every={every}: must be at least 1, or a function from the step number to bool"
        )
    return lambda number: number % every == 0


def _ratios(mask_ratios: Sequence[float]) -> tuple[float, ...]:
    outside = [ratio for ratio in mask_ratios if not 0 <= ratio < 1]
    if outside:
        raise DeltaLensError(
            f"mask_ratios: {outside[0]} is not in [0, 1); a mask ratio is the fraction masked out"
        )
    return tuple(dict.fromkeys(float(Fraction(str(ratio))) for ratio in mask_ratios))
