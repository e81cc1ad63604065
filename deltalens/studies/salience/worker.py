"""Measures the points of a salience study: all metrics of a sample in as few passes as possible."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.io.pairing import Pairing
from deltalens.io.records import Measurement, Setting
from deltalens.methods.mask_layers import Layer
from deltalens.methods.salience import (
    PassWatch,
    Salience,
    choose_targets,
    each_salience,
    seconds_of_pass,
)
from deltalens.numerics.masks import PackedMask
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.suite import Metrics
from deltalens.scoring.texts import Progress
from deltalens.studies.executors import Report
from deltalens.studies.salience import masks as stored
from deltalens.studies.salience.changes import changes_of
from deltalens.studies.salience.spec import ALL, CHANGES, HALVES, SAMPLES, SalienceSpec

__all__ = ["UNIT", "SalienceWorker"]

UNIT = "masks and comparisons"
"""What the points are called in progress reports."""

Cells = Sequence[tuple[Setting, Metrics]]
Batches = list[dict[str, Tensor]]
_SAID = {ALL: "all examples", HALVES: "the other half of the examples"}


class SalienceWorker:
    """Measures points (see `Worker`).

    Args:
        spec: the study.
        loaded: the model.
        batches: the calibration batches.
        folder: the study's folder, for the masks.
        pairing: of the fine-tune that the masks are compared with, and the model; None: of none.
        todo: the points that are left.
        watch: told of stages.
    """

    def __init__(
        self,
        spec: SalienceSpec,
        loaded: LoadedModel,
        batches: Batches,
        folder: Path,
        pairing: Pairing | None,
        todo: Sequence[Setting],
        watch: Progress,
    ) -> None:
        self._spec, self._model, self._batches = spec, loaded.model, batches
        self._folder, self._pairing, self._watch = folder, pairing, watch
        self._todo = list(todo)
        self._finished = 0
        self._layers: list[Layer] = choose_targets(loaded.model, spec.targets)
        self._held: dict[tuple[str, str], dict[str, PackedMask]] = {}
        """(sample, metric) -> masks that a point is yet to use."""
        self._changes: dict[str, PackedMask] | None = None
        self.seconds: dict[str, float] = {}
        """What was measured -> seconds that it took."""
        self.notes: list[str] = []

    def facts(self) -> dict[str, Any]:
        """Collect what the summary needs of the model and the batches.

        Returns:
            JSON values by name.
        """
        every = list(self._model.parameters())
        return {
            "entries": sum(layer.entries for layer in self._layers),
            "parameters": sum(parameter.numel() for parameter in every),
            "model_bytes": sum(each.numel() * each.element_size() for each in every),
            "batches": len(self._batches),
            "examples": sum(len(batch["labels"]) for batch in self._batches),
        }

    def time_a_pass(self) -> float:
        """Time a plain forward and backward pass.

        Returns:
            Seconds per batch: the median of up to four.
        """
        return statistics.median(
            seconds_of_pass(self._model, self._layers, batch) for batch in self._batches[:4]
        )

    def measure(self, setting: Setting, report: Report) -> Cells:
        """See `Worker`."""
        cells = self._measured(setting)
        self._finished += 1
        return cells

    def _measured(self, setting: Setting) -> Cells:
        name, part, of = setting["salience"], setting["part"], setting["of"]
        if part == "budget":
            return self._budget(name)
        if part == "sample":
            return [(setting, self._sample(name, of))]
        other = self._largest_changes() if part == "fine-tune" else stored.read(self._folder, of)
        return [(setting, stored.overlap(stored.read(self._folder, name), other))]

    def close(self) -> None:
        """See `Worker`."""
        self._held.clear()

    # --- parts ------------------------------------------------------------------------------------

    def _budget(self, name: str) -> Cells:
        masks = self._masks(ALL, name, self._batches)
        about = {
            "salience": name,
            **{key: value for key, value in self._spec.identity().items() if key != "salience"},
        }
        stored.write(self._folder, name, masks, self._layers, about)
        return [
            ({"salience": name, "part": "budget", "of": place}, metrics)
            for place, metrics in stored.budgets(masks)
        ]

    def _sample(self, name: str, sample: str) -> Metrics:
        middle = len(self._batches) // 2
        if sample == HALVES:
            # Two halves of one size: with an odd number of batches, the last is in neither.
            first = self._masks("1/2", name, self._batches[:middle])
            other = self._masks(HALVES, name, self._batches[middle : 2 * middle])
            used = self._batches[:middle]
        else:
            used = self._batches[: int(SAMPLES[sample] * len(self._batches))]
            first = self._masks(sample, name, used, again=sample == "1/2")
            other = stored.read(self._folder, name)
        examples = sum(len(batch["labels"]) for batch in used)
        return {**stored.overlap(first, other), "examples": Measurement(examples)}

    def _largest_changes(self) -> dict[str, PackedMask]:
        if self._changes is None:
            assert self._pairing is not None
            self._watch.stage("reading the fine-tune's changes", None)
            changes = changes_of(self._pairing, self._model, self._layers)
            found = Salience(CHANGES, changes, signed=False, steps=0, examples=0)
            self._changes = self._top(found)
            kept = sum(int(mask.count()) for mask in self._changes.values())
            changed = sum(int(each.count_nonzero()) for each in changes.values())
            if changed < kept:
                self.notes.append(
                    f"the fine-tune changed only {changed:,} of these weights, fewer than the "
                    f"{kept:,} that a mask keeps: the others of its largest changes are random"
                )
        return self._changes

    # --- masks ------------------------------------------------------------------------------------

    def _masks(
        self, sample: str, name: str, batches: Batches, again: bool = False
    ) -> dict[str, PackedMask]:
        """The masks of a metric on a sample, measured with those of every metric that is left."""
        key = sample, name
        if key not in self._held:
            self._measure(sample, name, batches)
        return self._held[key] if again else self._held.pop(key)

    def _measure(self, sample: str, name: str, batches: Batches) -> None:
        of = HALVES if sample in ("1/2", HALVES) else sample
        left = {each["salience"] for each in self._todo if each["of"] in (sample, of)}
        names = [
            each
            for each in self._spec.metrics
            if each == name
            or (each in left and (sample == ALL or not SALIENCE_METRICS[each].data_free))
        ]
        begun, spec = time.perf_counter(), self._spec
        where = f"salience on {_SAID.get(sample, f'{sample} of the examples')}"
        self._watch.stage(where, None)
        passes = PassWatch(
            begin=lambda what, batches: self._watch.stage(f"{where}: {what}", batches),
            advance=self._watch.advance,
        )
        for data_free in (True, False):
            group = [each for each in names if SALIENCE_METRICS[each].data_free is data_free]
            for found in each_salience(
                self._model,
                batches,
                group,
                targets=spec.targets,
                steps=len(batches),
                # Without data there is no expectation to take.
                expectation=None if data_free else spec.expectation,
                sign=1 if spec.sign > 0 else -1,
                hessian=spec.hessian,
                seed=spec.seed,
                watch=passes,
            ):
                self._held[sample, found.metric] = self._top(found)
                self.notes += [f"{found.metric}: {note}" for note in found.notes]
                del found
        self.seconds[sample] = self.seconds.get(sample, 0.0) + time.perf_counter() - begun
        self._watch.stage(UNIT, len(self._todo))
        self._watch.advance(self._finished)

    def _top(self, found: Salience) -> dict[str, PackedMask]:
        masks = found.masks(self._spec.density, scope=self._spec.scope, seed=self._spec.seed)
        return {name: _on_cpu(mask) for name, mask in masks.items()}


def _on_cpu(mask: PackedMask) -> PackedMask:
    return PackedMask(mask.size, data=mask.bytes.to(torch.device("cpu")))
