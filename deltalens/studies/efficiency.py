"""The cost of methods in a training: samples per second, FLOPs and memory (GMT, Table 3)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deltalens.catalog.methods import method_name
from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError, errors_from
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import (
    Measurement,
    Setting,
    StudyFolder,
    StudyRecord,
    check_study_folder,
    load_study,
)
from deltalens.scoring.finite import check_model
from deltalens.scoring.loading import load_model, pick_device
from deltalens.scoring.planning import plan_training
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile, read_rows
from deltalens.scoring.suite import Metrics
from deltalens.scoring.tokens import Batch, batches, encode_rows, padding_of
from deltalens.studies import axes
from deltalens.studies.engine import StudyWatch, read_weights, run_cells
from deltalens.studies.executors import Report
from deltalens.studies.training_plans import known_methods, method_settings, with_methods
from deltalens.training.costs import peak_mb, reset_peak
from deltalens.training.methods import Method, labelled, method_of
from deltalens.training.objectives import Objective
from deltalens.training.prepare import training_dtype
from deltalens.training.spec import TrainingSpec

__all__ = ["KIND", "efficiency"]

KIND = "efficiency"
_KNOWN = STUDIES[KIND]


def efficiency(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    spec: TrainingSpec,
    *,
    methods: Sequence[Method] = (),
    repeats: int = 7,
    steps: int = 5,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Time training steps under several methods, in alternating blocks of steps.

    A single model is trained throughout, on batches of equal size. Each block is a cell. The order
    of the methods rotates from repeat to repeat.

    Args:
        model, data, fields, limit, device, dtype, trust_remote_code: as `train` takes them.
        out: the study's folder.
        spec: the settings that all methods share.
        methods: the methods to compare, with `sft` added; (): sft, random-mask and gmt.
        repeats: number of blocks of each method.
        steps: optimizer steps per block.
        fresh: discard any other study in the folder.
        watch: told of stages, progress and finished cells.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before the model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    chosen = with_methods(["sft"], methods or [method_of(name) for name in _KNOWN.default])
    known, by_name = known_methods(KIND), labelled(chosen)
    unknown = [name for name in by_name if method_name(name) not in known]
    if unknown:
        raise DeltaLensError(f"method {unknown[0]!r}: choose from {', '.join(known)}")
    if repeats < 1 or steps < 1:
        raise DeltaLensError(f"repeats {repeats}, steps {steps}: must be at least 1")
    rows = read_rows(data, limit, fields)
    checkpoint = open_checkpoint(model)
    on_device = pick_device(device)
    as_dtype = training_dtype(dtype, checkpoint, on_device)
    check_study_folder(out, [checkpoint.path])
    if watch.on_plan is not None:
        block = dataclasses.replace(spec, steps=steps)
        blocks = (repeats + 1) * len(by_name)
        watch.on_plan(plan_training("blocks", blocks, checkpoint, rows, (), block, on_device, 1))
    read_weights(watch, checkpoint)
    identity: dict[str, Any] = {
        **spec.shared(),
        "seed": spec.seed,
        "methods": [*by_name],
        "settings": method_settings(spec, chosen),
        "repeats": repeats,
        "steps_in_block": steps,
        "model": checkpoint.identity,
        "data": rows.identity,
        "device": on_device.type,
        "dtype": str(as_dtype).removeprefix("torch."),
    }
    if trust_remote_code:
        identity["trust_remote_code"] = True
    columns, grows = _KNOWN.columns, {"repeats": axes.largest}
    with StudyFolder.open(out, KIND, identity, columns, fresh, grows) as study:
        watch.stage("loading the model", None)
        loaded = load_model(checkpoint, as_dtype, on_device, trust_remote_code)
        trainings = {name: spec.of(method, spec.seed) for name, method in by_name.items()}
        bench = _Bench(
            loaded.model, rows, loaded.tokenizer, spec, trainings, steps, on_device, checkpoint.path
        )
        study.facts |= {"model": str(checkpoint.path), **bench.facts()}
        study.write_manifest()
        # Warm up caches, compiled loops and the optimizer's state.
        for method in by_name:
            bench.block(method)
        cells: list[Setting] = [
            {"method": [*by_name][(turn + repeat) % len(by_name)], "repeat": repeat}
            for repeat in range(study.spec["repeats"])
            for turn in range(len(by_name))
        ]
        run_cells(study, cells, None, bench, watch)
    return load_study(out)


class _Bench:
    """A model in training, on batches that repeat endlessly (see `Worker`)."""

    def __init__(
        self,
        model: nn.Module,
        rows: DataFile,
        tokenizer: Any,
        spec: TrainingSpec,
        trainings: Mapping[str, TrainingSpec],
        steps: int,
        device: torch.device,
        path: Path,
    ) -> None:
        Objective(spec).check_trainable(model, tokenizer, path)
        self.model, self.spec, self.steps, self.device = model, spec, steps, device
        self.trainings = trainings
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=spec.peak_learning_rate, weight_decay=spec.weight_decay
        )
        sequences, _ = encode_rows(rows, tokenizer, spec.max_length or longest_input(model), model)
        sequences = sequences[: len(sequences) // spec.batch_size * spec.batch_size]
        if not sequences:
            raise DeltaLensError(f"{rows.path}: has fewer rows than a batch ({spec.batch_size})")
        check_model(model, sequences[0].ids, path)
        model.train()
        pad = padding_of(tokenizer, model)
        longest = max(len(sequence.ids) for sequence in sequences)
        self.batches = [
            batch.to(device)
            for batch in batches(sequences, spec.batch_size * longest, pad)
            if len(batch.rows) == spec.batch_size
        ]
        self._next = cycle(self.batches)

    def facts(self) -> dict[str, Any]:
        """Count the floating-point operations of one step, by torch's counter, and parameters.

        Returns:
            JSON values by name.
        """
        with FlopCounterMode(display=False) as counter:
            self._step()
        return {
            "flops_of_a_step": counter.get_total_flops(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def measure(self, setting: Setting, report: Report) -> Metrics:
        """See `Worker`."""
        return self.block(setting["method"])

    def close(self) -> None:
        """See `Worker`."""

    def block(self, method: str) -> Metrics:
        """Train one block of steps under a method.

        Args:
            method: its name.

        Returns:
            Samples per second, seconds per step, the share of time in our hooks, and the peak of
            memory in MB of 10^6 bytes.
        """
        training = self.trainings[method]
        with ExitStack() as stack:
            attached = [
                stack.enter_context(callback.build(self.model))
                for callback in training.method.callbacks(training.seed)
            ]
            reset_peak(self.device)
            self._synchronize()
            begun = time.perf_counter()
            for _ in range(self.steps):
                for _ in range(self.spec.accumulate):
                    self._backward()
                self._update()
            self._synchronize()
            seconds = time.perf_counter() - begun
        samples = self.steps * self.spec.accumulate * self.spec.batch_size
        return {
            "samples_per_second": Measurement(samples / seconds, n=samples),
            "step_seconds": Measurement(seconds / self.steps, n=self.steps),
            "hook_share": Measurement(sum(callback.seconds for callback in attached) / seconds),
            "peak_mb": Measurement(peak_mb(self.device)),
        }

    def _step(self) -> None:
        self._backward()
        self._update()

    def _backward(self) -> None:
        batch: Batch = next(self._next)
        labels = batch.ids.masked_fill(~_is_target(batch), -100)
        model: Callable[..., Any] = self.model
        with errors_from(
            "transformers", f"{type(model).__name__}: cannot be trained on these rows"
        ):
            out = model(
                input_ids=batch.ids, attention_mask=batch.mask, labels=labels, use_cache=False
            )
            (out.loss / self.spec.accumulate).backward()

    def _update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _is_target(batch: Batch) -> Tensor:
    """Which tokens are predicted (B, T): a batch marks the position before each."""
    return batch.targets.roll(1, dims=1)
