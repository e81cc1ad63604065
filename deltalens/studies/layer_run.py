"""The work of one invocation of a sweep over layers: survey the delta, prepare workers, and measure
every cell that is left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from deltalens.errors import DeltaLensError
from deltalens.io.records import Setting, StudyFolder
from deltalens.names import block_number, block_stacks
from deltalens.numerics.workers import workers
from deltalens.scoring.prefix import Prefix, find_blocks
from deltalens.scoring.ready_suite import ReadySuite
from deltalens.scoring.suite import Metrics
from deltalens.scoring.texts import Progress, StoredTexts
from deltalens.studies.deltas import DeltaStream, Span
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Report
from deltalens.studies.layer_spec import LayersSpec
from deltalens.studies.live import LiveModel
from deltalens.studies.measuring import Measuring
from deltalens.studies.paired import PairedModels, PairRecipe, at_work
from deltalens.studies.selecting import find_nonfinite, no_delta

__all__ = ["measure_layers", "point_of"]


@dataclass(frozen=True, kw_only=True)
class LayerRecipe(PairRecipe):
    """Prepares the workers of a sweep over layers (see `Recipe`)."""

    spec: LayersSpec
    cache_bytes: int
    """Bytes of hidden states that each worker may cache; 0: it caches none."""

    def prepare(self, watch: Progress) -> LayerWorker:
        """See `Recipe`."""
        return LayerWorker(self, watch)


class _Measured(NamedTuple):
    """What a worker measured in a cell."""

    metrics: Metrics
    most_cached_bytes: int | None
    """The most bytes of hidden states that the worker has cached so far; None: it caches none."""
    note: str | None
    """Why some states are not cached, as far as the worker knows by now; None: all are."""


class LayerWorker:
    """A live model each of whose blocks is the fine-tune's or the base's (see `Worker`)."""

    def __init__(self, recipe: LayerRecipe, watch: Progress) -> None:
        self._recipe = recipe
        self._groups = {str(group): group for group in recipe.spec.groups}
        self._reference: str | None = None
        watch.stage("loading the model", None)
        pairing = recipe.models.pairing
        loaded = recipe.models.loading.load(pairing.ft)
        self._model = loaded.model
        self._live = LiveModel(loaded.model, pairing)
        self._tensors: dict[int | None, set[str]] = {}
        for pair in pairing.pairs:
            self._tensors.setdefault(block_number(pair.name), set()).add(pair.name)
        self._suite = ReadySuite(recipe.spec.suite, loaded, pairing.ft.path, recipe.texts, watch)
        self.notes = [*self._suite.notes]
        self._prefix = self._find_prefix() if recipe.cache_bytes else None

    def measure(self, setting: Setting, report: Report) -> _Measured:
        """See `Worker`."""
        try:
            return self._measure(setting, report)
        except BaseException:
            # Some states may be of another block than the others.
            self._reference = None
            raise

    def _measure(self, setting: Setting, report: Report) -> _Measured:
        live, prefix = self._live, self._prefix
        reference = "ft" if setting["method"] in ("ft", "drop") else "base"
        group = self._groups.get(setting["group"])
        # Names of the tensors that are the base's in the reference model.
        reverted = self._tensors_in(() if reference == "ft" else self._tensors)
        within: AbstractContextManager[None] = nullcontext()
        if prefix is not None:
            if self._reference != reference:
                prefix.forget()
                self._reference = reference
            if group is not None:
                # States are cached of the reference model itself, not of the last cell's.
                live.put_back_only(reverted)
                prefix.advance(group.blocks[0])
            within = prefix.evaluating(group.blocks[0] if group else prefix.block, report)
        live.put_back_only(reverted ^ self._tensors_in(group.blocks if group else ()))
        with within:
            metrics = self._suite.measure(self._model, report)
        most_bytes = prefix.most_bytes if prefix else None
        return _Measured(metrics, most_bytes, self._not_cached(prefix))

    def close(self) -> None:
        """See `Worker`."""
        if vars(self):
            self._live.restore()
            vars(self).clear()

    def _tensors_in(self, blocks: Iterable[int | None]) -> set[str]:
        return {name for block in blocks for name in self._tensors.get(block, ())}

    def _find_prefix(self) -> Prefix | None:
        """Prepare to cache the outputs of unchanged blocks; None, with a note, if that is
        impossible."""
        model, spec = self._model, self._recipe.spec
        try:
            if spec.suite.metric is not None or spec.suite.installed:
                raise DeltaLensError("a custom metric may use any part of the model")
            if spec.suite.tasks is not None:
                raise DeltaLensError("standard tasks generate, and form batches of their own")
            if spec.suite.answer_pattern is not None:
                raise DeltaLensError("the model generates")
            blocks = find_blocks(model, block_stacks(self._recipe.models.pairing.ft.tensors))
            if spec.groups and max(group.blocks[-1] for group in spec.groups) >= len(blocks):
                raise DeltaLensError(f"{type(model).__name__} has {len(blocks)} blocks")
        except DeltaLensError as error:
            self.notes.append(_all_recomputed(str(error)))
            return None
        first_blocks = [group.blocks[0] for group in spec.groups]
        return Prefix(model, blocks, first_blocks, self._recipe.cache_bytes)

    def _not_cached(self, prefix: Prefix | None) -> str | None:
        if prefix is None:
            return None
        if prefix.refused is not None:
            return _all_recomputed(prefix.refused)
        if not prefix.too_many:
            return None
        return (
            f"{prefix.too_many} batches were recomputed in full in every cell: the hidden states "
            f"of the unchanged blocks would exceed {self._recipe.cache_bytes / 1e9:g} GB"
        )


def measure_layers(
    spec: LayersSpec,
    models: PairedModels,
    cache_bytes: int,
    folder: StudyFolder,
    measuring: Measuring,
) -> None:
    """Measure every cell that is left.

    Args:
        spec: the study's specification.
        models: the fine-tune and its base.
        cache_bytes: bytes of hidden states that all workers together may cache.
        folder: the study's folder, open for writing.
        measuring: by how many workers, and whom to tell of progress.

    Raises:
        DeltaLensError: there is no delta, a model is not finite, or a worker failed.
    """
    latest_note: str | None = None

    def cells_of(setting: Setting, measured: _Measured) -> Sequence[tuple[Setting, Metrics]]:
        nonlocal latest_note
        if measured.most_cached_bytes is not None:
            before = folder.facts.get("most_cached_bytes", 0)
            folder.facts["most_cached_bytes"] = max(before, measured.most_cached_bytes)
        latest_note = measured.note
        return [(setting, measured.metrics)]

    watch = measuring.watch
    _survey(models, folder, watch)
    recipe = LayerRecipe(
        spec=spec,
        models=models,
        texts=StoredTexts(folder.path, reuse=bool(folder.cells)),
        cache_bytes=cache_bytes // measuring.execution.jobs,
    )
    with at_work(recipe, folder, measuring) as worker:
        run_cells(
            folder,
            spec.order(),
            recipe.elsewhere(),
            worker,
            watch,
            point_of=point_of,
            cells_of=cells_of,
            write_table=lambda: folder.write_table(spec.cells()),
            execution=measuring.execution,
            tasks=spec.suite.tasks,
        )
        if latest_note is not None:
            folder.facts["notes"].append(latest_note)
        folder.write_manifest()


def _all_recomputed(reason: str) -> str:
    return f"unchanged blocks were recomputed in every cell: {reason}"


def _survey(models: PairedModels, folder: StudyFolder, watch: StudyWatch) -> None:
    """Record how much of the delta each block contains, in one pass over it.

    Raises:
        DeltaLensError: a NaN or an infinity in either model, or no delta at all.
    """
    pairing = models.pairing
    watch.stage("reading the delta", pairing.entries)
    stream = DeltaStream()
    # Block number ("": in no block) -> its entries, and the squared norm of its delta.
    by_block: dict[str, dict[str, Any]] = {}
    unchanged = 0
    with workers() as mapper:
        spans = stream.parts(pairing.pairs)
        for span, (zeros, squares) in zip(
            spans, mapper(lambda span: _size_of(stream, span), spans), strict=True
        ):
            number = block_number(span.pair.name)
            block = by_block.setdefault(
                "" if number is None else str(number), {"entries": 0, "squares": 0.0}
            )
            block["entries"] += span.stop - span.start
            block["squares"] += squares
            unchanged += zeros
            watch.advance(span.stop - span.start)
    if not all(torch.tensor(block["squares"]).isfinite() for block in by_block.values()):
        raise find_nonfinite(pairing.pairs, stream)
    if unchanged == pairing.entries:
        raise no_delta(pairing)
    blocks = {number: block for number, block in by_block.items() if number}
    outside = by_block.get("", {"entries": 0, "squares": 0.0})
    folder.facts |= models.facts(unchanged, {"blocks": blocks, "outside": outside})


def _size_of(stream: DeltaStream, span: Span) -> tuple[int, float]:
    """Count the entries of a span's delta that are exactly 0, and sum its squares."""
    zeros, squares = 0, 0.0
    for chunk in stream.chunks(span):
        zeros += chunk.delta.numel() - int(chunk.delta.count_nonzero())
        squares += float(torch.linalg.vector_norm(chunk.delta, dtype=torch.float64)) ** 2
    return zeros, squares


def point_of(setting: Setting) -> str:
    """Name the model of a cell: groups of different sizes can be the same blocks, as the last group
    may be smaller.

    Args:
        setting: of the cell.

    Returns:
        A name that equal models share.
    """
    return f"{setting['method']} {setting['group']}"
