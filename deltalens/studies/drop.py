"""One-off Drop: a checkpoint with part of its delta put back to the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.io.folders import check_new_folder
from deltalens.io.matching import pair
from deltalens.io.pairing import Pairing, Unit
from deltalens.io.version import version
from deltalens.io.writer import CheckpointWriter, write_like
from deltalens.names import check_scope
from deltalens.numerics.kernels import largest_magnitude
from deltalens.numerics.rates import Rate, exact_rate, show_rate
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.workers import Mapper, workers
from deltalens.studies.deltas import DeltaChunk, DeltaStream, Span
from deltalens.studies.selecting import (
    DropSetting,
    check_strategy,
    edit_chunk,
    find_nonfinite,
    no_delta,
    select_unit,
)

__all__ = ["DropPass", "DropResult", "drop"]

_LARGE = 1e38
"""Entries below it have a difference that fits fp32."""

Progress = Callable[[int, int], None]
"""Called with (entries done, entries in all)."""


@dataclass(frozen=True)
class DropResult:
    """What a drop did."""

    out: Path
    pairing: Pairing
    entries: int
    """Entries that took part."""
    put_back: int
    """Entries put back to the base: round(rate * n) of each unit."""
    unchanged: int | None
    """Entries whose delta was 0 anyway; None for `random`, which need not know."""


def drop(
    ft: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    strategy: str = "trivial",
    rate: Rate = "0.7",
    scope: str = "tensor",
    rescale: bool = False,
    changed_only: bool = False,
    seed: int = 0,
    include: str | None = None,
    exclude: str | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> DropResult:
    """Put part of a fine-tune's delta back to the base, and write the checkpoint (GMT's One-off
    Drop baseline for `trivial`; DARE, Yu et al. 2024, for `random` with `rescale`).

    Exactly round(rate * n) entries of every unit become bitwise the base (cast once to the
    fine-tune's dtype), the others stay bitwise the fine-tune; the result depends neither on
    sharding nor on chunk sizes. Memory: a few chunks, whatever the size of the models.

    Args:
        ft, base: checkpoints, as folders or files.
        out: a folder that does not exist, or is empty; it appears whole or not at all.
        strategy: `salient` (largest |delta| first), `trivial` (smallest), or `random`.
        rate: fraction to put back, an exact decimal from 0 to 1.
        scope: what is ranked together: `tensor`, `layer` (a transformer block) or `global`.
        rescale: divide what is kept by 1 - rate.
        changed_only: count the rate over entries that differ from the base, and drop only those.
        seed: of the random order, and of the one that settles ties.
        include, exclude: regular expressions over tensor names.
        strict: refuse tensors that only one of the two has; else notes name them.
        progress: called with (entries done, entries in all).

    Raises:
        DeltaLensError: bad input, before anything is written; or the disk is full.
    """
    exact = exact_rate(rate)
    setting = DropSetting(check_strategy(strategy), exact, seed)
    scoped = check_scope(scope)
    out = Path(out)
    pairing = pair(ft, base, include, exclude, strict)
    check_new_folder(out, [pairing.ft.path, pairing.base.path])
    record = {
        "deltalens": version(),
        "drop": {
            "ft": str(ft),
            "base": str(base),
            "strategy": strategy,
            "rate": show_rate(exact),
            "scope": scope,
            "rescale": rescale,
            "changed_only": changed_only,
            "seed": seed,
            "include": include,
            "exclude": exclude,
        },
    }
    work = DropPass(pairing, setting, exact if rescale else None, changed_only, progress)
    writing = write_like(pairing.ft, out, record=_json(record), copies=pairing.copies)
    with writing as writer, workers() as mapper:
        for unit in pairing.units(scoped):
            work.do(unit, writer, mapper)
        if not work.differs:
            raise no_delta(pairing)
    unchanged = work.unchanged if work.counted else None
    return DropResult(out, pairing, pairing.entries, work.put_back, unchanged)


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()


class DropPass:
    """Goes through the units: selects, edits, writes, and counts."""

    def __init__(
        self,
        pairing: Pairing,
        setting: DropSetting,
        rescale: Fraction | None,
        changed_only: bool,
        progress: Progress | None,
    ) -> None:
        self.setting, self.rescale, self.changed_only = setting, rescale, changed_only
        self.progress = progress or (lambda done, total: None)
        self.total, self.done = pairing.entries, 0
        self.put_back = self.unchanged = 0
        self.counted = True
        self.differs = False
        self.stream, self.scratch = DeltaStream(), Scratch()

    def do(self, unit: Unit, writer: CheckpointWriter, mapper: Mapper) -> None:
        """Select on one unit, and write its tensors."""
        found = select_unit(
            unit, [self.setting], self.stream, changed_only=self.changed_only, mapper=mapper
        )
        selection = found.selections[self.setting]
        self.put_back += found.counts[self.setting]
        blind = found.unchanged is None
        if found.unchanged is None:
            self.counted = False
        else:
            self.unchanged += found.unchanged
            self.differs |= found.unchanged < unit.entries

        def edit(span: Span) -> int:
            for chunk in self.stream.chunks(span):
                if blind:
                    self.look_at(chunk)
                if not selection.empty or self.rescale:
                    edit_chunk(chunk, selection, self.rescale, self.scratch)
                writer.write(chunk.pair.ft, chunk.start, chunk.ft)
            return span.stop - span.start

        for done in mapper(edit, self.stream.parts(unit.pairs)):
            self.done += done
            self.progress(self.done, self.total)

    def look_at(self, chunk: DeltaChunk) -> None:
        """What ranking would have told: whether anything is not finite, or differs."""
        both = (chunk.ft, chunk.base)
        small = all(largest_magnitude(values, self.scratch) < _LARGE for values in both)
        if not small and not bool(chunk.delta.isfinite().all()):
            raise find_nonfinite([chunk.pair], self.stream)
        # Other threads look, too: what one of them has seen is never taken back.
        if not self.differs and bool(chunk.delta.count_nonzero()):
            self.differs = True
