"""What a method costs a training: samples per second, FLOPs and memory (GMT, Table 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

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
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import DataFile, read_rows
from deltalens.scoring.suite import Metrics
from deltalens.scoring.tokens import Batch, batches, encode_rows, padding_of
from deltalens.studies import axes
from deltalens.studies.engine import StudyWatch, read_weights, run_cells
from deltalens.studies.executors import Tell
from deltalens.studies.training_plans import cells_own
from deltalens.training.methods import method_callbacks
from deltalens.training.run import check_trainable, training_dtype
from deltalens.training.spec import TrainingSpec, check_own

__all__ = ["KIND", "efficiency"]

KIND = "efficiency"
_KNOWN = STUDIES[KIND]


def efficiency(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    spec: TrainingSpec,
    *,
    methods: Sequence[str] = _KNOWN.default,
    repeats: int = 7,
    steps: int = 5,
    fields: Mapping[str, str] | None = None,
    limit: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Time a training's steps under several methods, in blocks that take turns.

    One model trains throughout, on batches of one size; each block is a cell. The methods' order
    rotates from repeat to repeat.

    Args:
        model, data, fields, limit, device, dtype: as `train` takes them.
        out: the study's folder.
        spec: the training's settings; the method is the cell's.
        methods: which to compare; plain fine-tuning is always among them.
        repeats: blocks of each method.
        steps: steps in a block.
        fresh: discard what the folder holds of another study.
        watch: told of stages, progress and finished cells.

    Raises:
        DeltaLensError: bad input, before the model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    methods = tuple(dict.fromkeys(("sft", *methods)))
    unknown = [method for method in methods if method not in _KNOWN.methods]
    if unknown:
        raise DeltaLensError(f"method {unknown[0]!r}: choose from {', '.join(_KNOWN.methods)}")
    check_own(methods, spec.given)
    if repeats < 1 or steps < 1:
        raise DeltaLensError(f"repeats {repeats}, steps {steps}: at least 1")
    rows = read_rows(data, limit, fields)
    checkpoint = open_checkpoint(model)
    where = pick_device(device)
    kind = training_dtype(dtype, checkpoint, where)
    check_study_folder(out, [checkpoint.path])
    read_weights(watch, checkpoint)
    identity: dict[str, Any] = {
        **spec.shared(),
        "seed": spec.seed,
        "methods": list(methods),
        "settings": cells_own(spec, methods),
        "repeats": repeats,
        "steps_in_block": steps,
        "model": checkpoint.identity,
        "data": rows.identity,
        "device": where.type,
        "dtype": str(kind).removeprefix("torch."),
    }
    columns, grows = _KNOWN.columns, {"repeats": axes.largest}
    with StudyFolder.open(out, KIND, identity, columns, fresh, grows) as study:
        watch.stage("loading the model", None)
        loaded = load_model(checkpoint, kind, where)
        bench = _Bench(loaded.model, rows, loaded.tokenizer, spec, steps, where, checkpoint.path)
        study.facts |= {"model": str(checkpoint.path), **bench.facts()}
        study.write_manifest()
        # One block for nothing: caches, compiled loops, the optimizer's state.
        for method in methods:
            bench.block(method)
        cells: list[Setting] = [
            {"method": methods[(place + repeat) % len(methods)], "repeat": repeat}
            for repeat in range(study.spec["repeats"])
            for place in range(len(methods))
        ]
        run_cells(study, cells, None, bench, watch)
    return load_study(out)


class _Bench:
    """A model in training, and batches that never end."""

    def __init__(
        self,
        model: nn.Module,
        rows: DataFile,
        tokenizer: Any,
        spec: TrainingSpec,
        steps: int,
        device: torch.device,
        where: Path,
    ) -> None:
        check_trainable(model, tokenizer, where)
        self.model, self.spec, self.steps, self.device = model, spec, steps, device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        sequences, _ = encode_rows(rows, tokenizer, spec.max_length or longest_input(model), model)
        sequences = sequences[: len(sequences) // spec.batch_size * spec.batch_size]
        if not sequences:
            raise DeltaLensError(f"{rows.path}: fewer rows than a batch of {spec.batch_size}")
        check_model(model, sequences[0].ids, where)
        model.train()
        pad = padding_of(tokenizer, model)
        longest = max(len(one.ids) for one in sequences)
        found = batches(sequences, spec.batch_size * longest, pad)
        self.batches = [one.to(device) for one in found if len(one.rows) == spec.batch_size]
        self._next = cycle(self.batches)

    def facts(self) -> dict[str, Any]:
        """What one step takes in floating-point operations, by torch's counter."""
        with FlopCounterMode(display=False) as counter:
            self._step()
        return {
            "flops_of_a_step": counter.get_total_flops(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def measure(self, setting: Setting, tell: Tell) -> Metrics:
        """See `Worker`."""
        return self.block(setting["method"])

    def close(self) -> None:
        """See `Worker`."""

    def block(self, method: str) -> Metrics:
        """Some steps under a method."""
        own = self.spec.of(method)
        with ExitStack() as stack:
            attached = [
                stack.enter_context(callback.build(self.model))
                for callback in method_callbacks(own)
            ]
            forget_peak(self.device)
            self._wait()
            begun = time.perf_counter()
            for _ in range(self.steps):
                for _ in range(self.spec.accumulate):
                    self._backward()
                self._update()
            self._wait()
            seconds = time.perf_counter() - begun
        samples = self.steps * self.spec.accumulate * self.spec.batch_size
        return {
            "samples_per_second": Measurement(samples / seconds, n=samples),
            "step_seconds": Measurement(seconds / self.steps, n=self.steps),
            "hook_share": Measurement(sum(one.seconds for one in attached) / seconds),
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

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _is_target(batch: Batch) -> Tensor:
    """Which tokens are predicted: the batch says at the place before each."""
    return batch.targets.roll(1, dims=1)


def forget_peak(device: torch.device) -> None:
    """Begin to look for the peak of memory anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb(device: torch.device) -> float:
    """The most memory since then, in MB of 10^6 bytes: the device's, or the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return next(_status("VmHWM"), float("nan"))


def _status(name: str) -> Iterator[float]:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        if line.startswith(f"{name}:"):
            yield int(line.split()[1]) * 1024 / 1e6
