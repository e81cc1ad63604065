"""What one invocation of a sweep over layers does: it surveys the delta, prepares a worker, and has
it, or others like it, measure every cell that is left."""

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
from deltalens.scoring.suite import Metrics, ReadySuite
from deltalens.scoring.texts import KeptTexts, Progress
from deltalens.studies.deltas import DeltaStream, Span
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Tell
from deltalens.studies.layer_spec import LayersSpec
from deltalens.studies.live import LiveModel
from deltalens.studies.paired import PairedModels, PairRecipe, at_work
from deltalens.studies.selecting import find_nonfinite, no_delta

__all__ = ["measure_layers"]


@dataclass(frozen=True, kw_only=True)
class LayerRecipe(PairRecipe):
    """How the worker of a sweep over layers is prepared."""

    spec: LayersSpec
    cache_bytes: int
    """What a worker may hold of the unchanged blocks' states; 0: nothing."""

    def prepare(self, watch: Progress) -> LayerWorker:
        """See `Recipe`."""
        return LayerWorker(self, watch)


class _Found(NamedTuple):
    """What is found in a cell."""

    metrics: Metrics
    cached: int | None
    """Bytes of the unchanged blocks' states that the worker held, at most so far; None where it
    holds none."""
    note: str | None
    """Of what was not held, as it is now."""


class LayerWorker:
    """A live model whose blocks are the fine-tune's or the base's (see `Worker`)."""

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

    def measure(self, setting: Setting, tell: Tell) -> _Found:
        """See `Worker`."""
        live, prefix = self._live, self._prefix
        near_ft = setting["method"] in ("ft", "drop")
        group = self._groups.get(setting["group"])
        reference = self._tensors_in(() if near_ft else self._tensors)
        within: AbstractContextManager[None] = nullcontext()
        if prefix is not None:
            if self._reference != ("ft" if near_ft else "base"):
                prefix.forget()
                self._reference = "ft" if near_ft else "base"
            if group is not None:
                # What the cells before put out of place is put right first.
                live.put_back_only(reference)
                prefix.advance(group.blocks[0])
            within = prefix.evaluating(group.blocks[0] if group else prefix.place, tell)
        live.put_back_only(reference ^ self._tensors_in(group.blocks if group else ()))
        with within:
            found = self._suite.measure(self._model)
        return _Found(found, prefix.most_bytes if prefix else None, self._not_held(prefix))

    def close(self) -> None:
        """See `Worker`."""
        if vars(self):
            self._live.restore()
            vars(self).clear()

    def _tensors_in(self, blocks: Iterable[int | None]) -> set[str]:
        return {name for block in blocks for name in self._tensors.get(block, ())}

    def _find_prefix(self) -> Prefix | None:
        """What the unchanged blocks put out is held, where that is possible."""
        model, spec = self._model, self._recipe.spec
        try:
            if spec.suite.metric is not None or spec.suite.installed:
                raise DeltaLensError("a metric of your own may look at any part of the model")
            if spec.suite.answer_pattern is not None:
                raise DeltaLensError("the model generates")
            blocks = find_blocks(model, block_stacks(self._recipe.models.pairing.ft.tensors))
            if spec.groups and max(g.blocks[-1] for g in spec.groups) >= len(blocks):
                raise DeltaLensError(f"{type(model).__name__} has {len(blocks)} blocks")
        except DeltaLensError as error:
            self.notes.append(_in_full(str(error)))
            return None
        places = [group.blocks[0] for group in spec.groups]
        return Prefix(model, blocks, places, self._recipe.cache_bytes)

    def _not_held(self, prefix: Prefix | None) -> str | None:
        if prefix is None:
            return None
        if prefix.refused is not None:
            return _in_full(prefix.refused)
        if not prefix.too_many:
            return None
        return (
            f"{prefix.too_many} batches ran in full in every cell: the states of the unchanged "
            f"blocks would take more than {self._recipe.cache_bytes / 1e9:g} GB"
        )


def measure_layers(
    spec: LayersSpec,
    models: PairedModels,
    cache_bytes: int,
    folder: StudyFolder,
    watch: StudyWatch,
    jobs: int,
    executor: str | None,
) -> None:
    """Measure every cell that is left.

    Args:
        spec: what was asked.
        models: the fine-tune and its base.
        cache_bytes: what may be held of the unchanged blocks' states, by all workers together.
        folder: open for writing.
        watch: told of stages, progress and finished cells.
        jobs, executor: as `run_cells` takes them.
    """
    last: list[str | None] = [None]

    def cells_of(setting: Setting, found: _Found) -> Sequence[tuple[Setting, Metrics]]:
        if found.cached is not None:
            before = folder.facts.get("most_cached_bytes", 0)
            folder.facts["most_cached_bytes"] = max(before, found.cached)
        last[0] = found.note
        return [(setting, found.metrics)]

    _survey(models, folder, watch)
    recipe = LayerRecipe(
        spec=spec,
        models=models,
        texts=KeptTexts(folder.path, again=bool(folder.cells)),
        cache_bytes=cache_bytes // jobs,
    )
    with at_work(recipe, folder, watch) as worker:
        run_cells(
            folder,
            spec.order(),
            recipe.elsewhere(),
            worker,
            watch,
            same=_same_point,
            cells_of=cells_of,
            write_table=lambda: folder.write_table(spec.cells()),
            jobs=jobs,
            executor=executor,
        )
        if last[0] is not None:
            folder.facts["notes"].append(last[0])
        folder.write_manifest()


def _in_full(why: str) -> str:
    return f"unchanged blocks ran again in every cell: {why}"


def _survey(models: PairedModels, folder: StudyFolder, watch: StudyWatch) -> None:
    """One pass over the deltas: which blocks hold how much of it.

    Raises:
        DeltaLensError: a NaN or an infinity in either model, or no delta at all.
    """
    pairing = models.pairing
    watch.stage("reading the delta", pairing.entries)
    stream = DeltaStream()
    found: dict[str, dict[str, Any]] = {}
    unchanged = 0
    with workers() as mapper:
        spans = stream.parts(pairing.pairs)
        for span, (zeros, squares) in zip(
            spans, mapper(lambda span: _size_of(stream, span), spans), strict=True
        ):
            number = block_number(span.pair.name)
            of_block = found.setdefault(
                "" if number is None else str(number), {"entries": 0, "squares": 0.0}
            )
            of_block["entries"] += span.stop - span.start
            of_block["squares"] += squares
            unchanged += zeros
            watch.advance(span.stop - span.start)
    if not all(torch.tensor(part["squares"]).isfinite() for part in found.values()):
        raise find_nonfinite(pairing.pairs, stream)
    if unchanged == pairing.entries:
        raise no_delta(pairing)
    blocks = {name: part for name, part in found.items() if name}
    outside = found.get("", {"entries": 0, "squares": 0.0})
    folder.facts |= models.facts(unchanged, {"blocks": blocks, "outside": outside})


def _size_of(stream: DeltaStream, span: Span) -> tuple[int, float]:
    """Of a span's delta: how many entries are exactly 0, and the sum of squares."""
    zeros, squares = 0, 0.0
    for chunk in stream.chunks(span):
        zeros += chunk.delta.numel() - int(chunk.delta.count_nonzero())
        squares += float(torch.linalg.vector_norm(chunk.delta, dtype=torch.float64)) ** 2
    return zeros, squares


def _same_point(setting: Setting) -> str:
    """Groups of one size and the last, shorter one of another can be the same blocks."""
    return f"{setting['method']} {setting['group']}"
