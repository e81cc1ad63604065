"""One-off Drop: write a checkpoint with part of its delta put back to the base."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.errors import Lines
from deltalens.io.escaping import plain_lines
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
"""The difference of two values below this magnitude is finite in fp32."""

Progress = Callable[[int, int], None]
"""Called with (entries done, entries in all)."""


@dataclass(frozen=True, repr=False)
class DropResult:
    """What a drop did."""

    out: Path
    """The checkpoint that was written."""
    strategy: str
    pairing: Pairing
    entries: int
    """Number of entries that took part."""
    put_back: int
    """Number of entries put back to the base: round(rate * n) of each unit."""
    unchanged: int | None
    """Number of entries whose delta was 0 before; None: not counted (`random`)."""

    def __repr__(self) -> str:
        return f"<DropResult: {self.put_back:,} of {self.entries:,} entries put back>"

    def summary(self) -> str:
        """Describe what was done.

        Returns:
            One sentence per line.
        """
        share = 100 * self.put_back / self.entries
        lines = [
            f"{self.put_back:,} of {self.entries:,} entries ({share:.2f} %) put back to the base, "
            f"{self.strategy} first"
        ]
        if self.unchanged is not None:
            unchanged = 100 * self.unchanged / self.entries
            lines.append(f"{unchanged:.2f} % had not changed at all")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Convert everything to JSON values, for scripts.

        Returns:
            JSON values by name.
        """
        return {
            "out": str(self.out),
            "entries": self.entries,
            "put_back": self.put_back,
            "unchanged": self.unchanged,
            "notes": self.pairing.notes,
            "kept": self.pairing.kept,
        }

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(plain_lines(Lines(*self.summary().splitlines())))}</pre>"


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

    Of the n entries of every unit, exactly round(rate * n) become the base's bits (cast once to the
    fine-tune's dtype); the others keep the fine-tune's. The result depends neither on sharding nor
    on chunk sizes. Memory: a few chunks, whatever the size of the models.

    Args:
        ft, base: checkpoints, as folders or files.
        out: a folder that does not exist, or is empty; it is written completely or not at all.
        strategy: `salient` (largest |delta| first), `trivial` (smallest first), or `random`.
        rate: fraction to put back, an exact decimal in [0, 1].
        scope: what is ranked together: `tensor`, `layer` (a transformer block) or `global`.
        rescale: divide the remaining deltas by 1 - rate.
        changed_only: apply the rate to the entries whose delta is not 0, and drop only those.
        seed: of the random order, and of the order that breaks ties.
        include, exclude: regular expressions over tensor names.
        strict: refuse tensors that only one of the two models has; if False, notes name them.
        progress: called with (entries done, entries in all).

    Returns:
        What was done.

    Raises:
        DeltaLensError: bad input, before anything is written; or the disk is full.
    """
    exact = exact_rate(rate)
    setting = DropSetting(check_strategy(strategy), exact, seed)
    unit_scope = check_scope(scope)
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
        for unit in pairing.units(unit_scope):
            work.do(unit, writer, mapper)
        if not work.differs:
            raise no_delta(pairing)
    unchanged = work.unchanged if work.counted else None
    return DropResult(out, strategy, pairing, pairing.entries, work.put_back, unchanged)


def _json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()


class DropPass:
    """Selects, edits and writes unit by unit, and counts entries.

    Args:
        pairing: the fine-tune and its base.
        setting: the drop.
        rescale: the drop rate, to divide the remaining deltas by 1 - rate; None: do not rescale.
        changed_only: apply the rate to the entries whose delta is not 0.
        progress: called with (entries done, entries in all).
    """

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
        """Select on one unit, and write its tensors.

        Args:
            unit: tensors that are ranked together.
            writer: of the new checkpoint.
            mapper: visits the parts of the unit.

        Raises:
            DeltaLensError: a model contains a NaN or an infinity, or the disk is full.
        """
        selected = select_unit(
            unit, [self.setting], self.stream, changed_only=self.changed_only, mapper=mapper
        )
        selection = selected.selections[self.setting]
        self.put_back += selected.counts[self.setting]
        deltas_read = selected.unchanged is not None
        if selected.unchanged is None:
            self.counted = False
        else:
            self.unchanged += selected.unchanged
            self.differs |= selected.unchanged < unit.entries

        def edit(span: Span) -> int:
            for chunk in self.stream.chunks(span):
                if not deltas_read:
                    self.check(chunk)
                if not selection.empty or self.rescale:
                    edit_chunk(chunk, selection, self.rescale, self.scratch)
                writer.write(chunk.pair.ft, chunk.start, chunk.ft)
            return span.stop - span.start

        for done in mapper(edit, self.stream.parts(unit.pairs)):
            self.done += done
            self.progress(self.done, self.total)

    def check(self, chunk: DeltaChunk) -> None:
        """Check what ranking would have checked, and note whether a delta is not 0.

        Args:
            chunk: of a unit whose deltas were not read to select.

        Raises:
            DeltaLensError: a delta is not finite.
        """
        both = (chunk.ft, chunk.base)
        small = all(largest_magnitude(values, self.scratch) < _LARGE for values in both)
        if not small and not bool(chunk.delta.isfinite().all()):
            raise find_nonfinite([chunk.pair], self.stream)
        # Several threads do this: the flag is only ever set, never cleared.
        if not self.differs and bool(chunk.delta.count_nonzero()):
            self.differs = True
