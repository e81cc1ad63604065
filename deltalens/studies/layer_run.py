"""One sitting of a sweep over layers: from the loaded model to the last cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from deltalens.errors import DeltaLensError
from deltalens.io.pairing import Pairing
from deltalens.io.records import Setting, StudyFolder
from deltalens.names import Group, block_number, stacks_of
from deltalens.numerics.workers import workers
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.prefix import Prefix, find_blocks
from deltalens.scoring.suite import Metrics, ReadySuite
from deltalens.scoring.texts import KeptTexts
from deltalens.studies.deltas import DeltaStream, Span
from deltalens.studies.engine import StudyWatch, run_cells
from deltalens.studies.executors import Tell
from deltalens.studies.layer_asked import LayersAsked
from deltalens.studies.live import LiveModel
from deltalens.studies.selecting import find_nonfinite, no_delta

__all__ = ["LayerRun"]

_OUTSIDE = None
"""The part of a model that is in no block."""


class LayerRun:
    """One sitting of a sweep over layers: from the loaded model to the last cell.

    Args:
        asked: what was asked.
        pairing: of the fine-tune and its base.
        folder: open for writing.
        watch: told of stages, progress and finished cells.
        cache_bytes: what may be held of the unchanged blocks' states; 0: nothing.
    """

    def __init__(
        self,
        asked: LayersAsked,
        pairing: Pairing,
        folder: StudyFolder,
        watch: StudyWatch,
        cache_bytes: int,
    ) -> None:
        self.asked, self.pairing, self.folder, self.watch = asked, pairing, folder, watch
        self.cache_bytes = cache_bytes
        self.groups = {str(group): group for group in asked.groups}
        self._reference: str | None = None

    def run(self, load: Callable[[], LoadedModel]) -> None:
        """Survey the delta, load, evaluate every cell that is left, and give the model its bits
        back."""
        self.survey()
        self.watch.stage("loading the model", None)
        loaded = load()
        parts = _Parts(loaded.model, self.pairing)
        try:
            texts = KeptTexts(self.folder.path, bool(self.folder.cells))
            suite = ReadySuite(self.asked.suite, loaded, self.pairing.ft.path, texts, self.watch)
            self.folder.facts["notes"] += suite.notes
            prefix = self.prefix(loaded.model)
            self.folder.write_manifest()

            def cell(setting: Setting, tell: Tell) -> Metrics:
                return self.measure(
                    setting, parts, prefix, tell, lambda: suite.measure(loaded.model)
                )

            try:
                run_cells(self.folder, self.asked.order(), cell, self.watch, _same_point)
            finally:
                self.folder.write_table(self.asked.cells())
            self._note(prefix)
        finally:
            parts.restore()

    def survey(self) -> None:
        """One pass over the deltas: which blocks hold how much of it.

        Raises:
            DeltaLensError: a NaN or an infinity in either model, or no delta at all.
        """
        self.watch.stage("reading the delta", self.pairing.entries)
        stream = DeltaStream()
        found: dict[str, dict[str, Any]] = {}
        unchanged = 0
        with workers() as each:
            spans = stream.parts(self.pairing.pairs)
            for span, (zeros, squares) in zip(
                spans, each(lambda span: _size_of(stream, span), spans), strict=True
            ):
                number = block_number(span.pair.name)
                of_block = found.setdefault(
                    "" if number is None else str(number), {"entries": 0, "squares": 0.0}
                )
                of_block["entries"] += span.stop - span.start
                of_block["squares"] += squares
                unchanged += zeros
                self.watch.advance(span.stop - span.start)
        if not all(torch.tensor(part["squares"]).isfinite() for part in found.values()):
            raise find_nonfinite(self.pairing.pairs, stream)
        if unchanged == self.pairing.entries:
            raise no_delta(self.pairing)
        self.folder.facts |= {
            "ft": str(self.pairing.ft.path),
            "base": str(self.pairing.base.path),
            "tensors": len(self.pairing.pairs),
            "entries": self.pairing.entries,
            "unchanged": unchanged,
            "kept": len(self.pairing.kept),
            "unpaired": self.pairing.unpaired,
            "blocks": {name: part for name, part in found.items() if name},
            "outside": found.get("", {"entries": 0, "squares": 0.0}),
            "notes": list(self.pairing.notes),
        }

    def prefix(self, model: nn.Module) -> Prefix | None:
        """What the unchanged blocks put out is held, where that is possible."""
        if not self.cache_bytes:
            return None
        try:
            if self.asked.suite.metric is not None or self.asked.suite.installed:
                raise DeltaLensError("a metric of your own may look at any part of the model")
            if self.asked.suite.answer_pattern is not None:
                raise DeltaLensError("the model generates")
            blocks = find_blocks(model, stacks_of(self.pairing.ft.tensors))
            if self.asked.groups and max(g.blocks[-1] for g in self.asked.groups) >= len(blocks):
                raise DeltaLensError(f"{type(model).__name__} has {len(blocks)} blocks")
        except DeltaLensError as error:
            self._note_full(str(error))
            return None
        places = [group.blocks[0] for group in self.asked.groups]
        return Prefix(model, blocks, places, self.cache_bytes)

    def measure(
        self,
        setting: Setting,
        parts: _Parts,
        prefix: Prefix | None,
        tell: Tell,
        evaluate: Callable[[], Metrics],
    ) -> Metrics:
        """Make one cell and evaluate it."""
        near_ft = setting["method"] in ("ft", "drop")
        group = self.groups.get(setting["group"])
        reference = frozenset() if near_ft else parts.names
        within: AbstractContextManager[None] = nullcontext()
        if prefix is not None:
            if self._reference != ("ft" if near_ft else "base"):
                prefix.forget()
                self._reference = "ft" if near_ft else "base"
            if group is not None:
                # What the cells before put out of place is put right first.
                parts.put_back(reference)
                prefix.advance(group.blocks[0])
            within = prefix.evaluating(group.blocks[0] if group else prefix.place, tell)
        parts.put_back(reference ^ _in_blocks(group, parts.names))
        with within:
            return evaluate()

    def _note(self, prefix: Prefix | None) -> None:
        if prefix is None:
            return
        before = self.folder.facts.get("most_cached_bytes", 0)
        self.folder.facts["most_cached_bytes"] = max(before, prefix.most_bytes)
        if prefix.refused is not None:
            self._note_full(prefix.refused)
        elif prefix.too_many:
            self.folder.facts["notes"].append(
                f"{prefix.too_many} batches ran in full in every cell: the states of the unchanged "
                f"blocks would take more than {self.cache_bytes / 1e9:g} GB"
            )
        self.folder.write_manifest()

    def _note_full(self, why: str) -> None:
        self.folder.facts["notes"].append(f"unchanged blocks ran again in every cell: {why}")


class _Parts:
    """A live model, block by block: each block, and all that is in none, is the fine-tune's or the
    base's."""

    def __init__(self, model: nn.Module, pairing: Pairing) -> None:
        self._live = LiveModel(model, pairing)
        self._tensors: dict[int | None, set[str]] = {}
        for pair in pairing.pairs:
            self._tensors.setdefault(block_number(pair.name), set()).add(pair.name)
        self.names = frozenset(self._tensors)
        self._put_back: frozenset[int | None] = frozenset()

    def put_back(self, wanted: frozenset[int | None]) -> None:
        """Make these parts the base's, and all others the fine-tune's."""
        for number in wanted ^ self._put_back:
            change = self._live.put_back_all if number in wanted else self._live.restore
            change(self._tensors[number])
        self._put_back = wanted

    def restore(self) -> None:
        """All of it is the fine-tune's, whatever happened before."""
        self._live.restore()


def _in_blocks(group: Group | None, names: Iterable[int | None]) -> frozenset[int | None]:
    return frozenset(group.blocks if group else ()) & frozenset(names)


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
