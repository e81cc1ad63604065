"""The exact entries that a drop puts back, selected unit by unit."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from deltalens.errors import DeltaLensError
from deltalens.io.pairing import Pairing, TensorPair, Unit
from deltalens.io.reader import torch_dtype
from deltalens.numerics.edit import revert_to_base
from deltalens.numerics.hashing import hashed_range, index_hash, name_key
from deltalens.numerics.kernels import runs_of_true, where_true
from deltalens.numerics.rates import show_rate
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import (
    STRATEGIES,
    Boundary,
    Chunk,
    Counts,
    Selection,
    Strategy,
    count,
    draw,
    drop_count,
    find_boundaries,
    find_boundary,
    find_random_boundaries,
    prefix_size,
    sample_stride,
)
from deltalens.numerics.workers import Mapper, serial_map
from deltalens.studies.deltas import DeltaChunk, DeltaStream, Span

__all__ = [
    "DropSetting",
    "UnitSelections",
    "check_finite",
    "check_strategy",
    "edit_chunk",
    "find_nonfinite",
    "no_delta",
    "select_unit",
]


_ONE_PASS = 1 << 26
"""The largest unit, in entries, on which a single setting is selected in one pass. It collects the
entries near the boundary (one in fifty, at 12 bytes, and copies of them) or holds the mask of a
random drop (one byte per entry). For larger units, memory does not grow with the unit."""


@dataclass(frozen=True)
class DropSetting:
    """One drop: its strategy, rate, and seed (for `random`, and to break ties)."""

    strategy: Strategy
    rate: Fraction
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.strategy} {show_rate(self.rate)}, seed {self.seed}"


@dataclass(frozen=True)
class UnitSelections:
    """The selections of several settings on one unit."""

    unit: Unit
    selections: dict[DropSetting, Selection]
    counts: dict[DropSetting, int]
    """Number of entries put back."""
    unchanged: int | None
    """Number of entries whose delta is exactly 0; None: not counted."""


def check_strategy(name: str) -> Strategy:
    """Check the name of a strategy.

    Args:
        name: to be checked.

    Returns:
        The strategy.

    Raises:
        DeltaLensError: it is not salient, trivial or random.
    """
    for strategy in STRATEGIES:
        if name == strategy:
            return strategy
    raise DeltaLensError(f"strategy {name!r}: choose from {', '.join(STRATEGIES)}")


def select_unit(
    unit: Unit,
    settings: Sequence[DropSetting],
    stream: DeltaStream,
    *,
    changed_only: bool = False,
    mapper: Mapper = serial_map,
) -> UnitSelections:
    """Select the entries of all settings on one unit.

    A single setting starts from a sample of the deltas, several settings from one pass that counts
    them. If all settings are `random` and apply to all entries, the deltas are not read.

    Args:
        unit: tensors that are ranked together.
        settings: the drops.
        stream: reads the deltas.
        changed_only: apply rates to the entries whose delta is not 0.
        mapper: visits the parts of the unit.

    Returns:
        The selections.

    Raises:
        DeltaLensError: a model contains a NaN or an infinity; names the tensor.
    """
    if len(settings) == 1 and not changed_only:
        selected = _select_one(unit, settings[0], stream, mapper)
        if selected is not None:
            return selected
    spans, scratch = stream.parts(unit.pairs), Scratch()
    source = [functools.partial(_deltas, stream, span) for span in spans]
    unchanged: int | None = None
    counts: Counts | None = None
    if changed_only or any(setting.strategy != "random" for setting in settings):
        counts = count(source, mapper)
        if counts is not None and counts.nonfinite:
            raise find_nonfinite(unit.pairs, stream)
        unchanged = counts.zeros if counts is not None else 0
    skipped = (unchanged or 0) if changed_only else 0

    boundaries: dict[DropSetting, Boundary] = {}
    for seed, ranked in _by_seed(s for s in settings if s.strategy != "random"):
        sizes = [prefix_size(s.strategy, s.rate, unit.entries, skipped) for s in ranked]
        boundaries |= zip(ranked, find_boundaries(source, sizes, seed, counts, mapper), strict=True)
    total = unit.entries - skipped
    for seed, drawn in _by_seed(s for s in settings if s.strategy == "random"):
        if changed_only:
            members = [functools.partial(_changed_hashes, stream, seed, span) for span in spans]
        else:
            members = [functools.partial(_hashes, stream, seed, scratch, span) for span in spans]
        sizes = [drop_count(setting.rate, total) for setting in drawn]
        boundaries |= zip(drawn, find_random_boundaries(members, total, sizes, mapper), strict=True)

    return UnitSelections(
        unit,
        {s: Selection(s.strategy, boundaries[s], s.seed, changed_only) for s in settings},
        {s: drop_count(s.rate, total) for s in settings},
        unchanged,
    )


def _select_one(
    unit: Unit, setting: DropSetting, stream: DeltaStream, mapper: Mapper
) -> UnitSelections | None:
    """Select for a single setting over all entries in one pass; None if that is not possible."""
    count = drop_count(setting.rate, unit.entries)
    if setting.strategy == "random":
        if not 0 < count < unit.entries <= _ONE_PASS:
            return None
        sizes = {pair.name: pair.entries for pair in unit.pairs}
        boundary, masks = draw(sizes, count, setting.seed, mapper)
        selection = Selection("random", boundary, setting.seed, drawn=masks)
        return UnitSelections(unit, {setting: selection}, {setting: count}, None)
    if unit.entries > _ONE_PASS:
        return None
    result = find_boundary(
        [functools.partial(_deltas, stream, span) for span in stream.parts(unit.pairs)],
        prefix_size(setting.strategy, setting.rate, unit.entries),
        unit.entries,
        stream.sample(unit.pairs, sample_stride(unit.entries)),
        setting.seed,
        mapper,
    )
    if not result.finite:
        raise find_nonfinite(unit.pairs, stream)
    if result.boundary is None:
        return None
    selection = Selection(setting.strategy, result.boundary, setting.seed)
    return UnitSelections(unit, {setting: selection}, {setting: count}, result.zeros)


def _by_seed(settings: Iterable[DropSetting]) -> Iterator[tuple[int, list[DropSetting]]]:
    groups: dict[int, list[DropSetting]] = {}
    for setting in settings:
        groups.setdefault(setting.seed, []).append(setting)
    yield from groups.items()


def _deltas(stream: DeltaStream, span: Span) -> Iterator[Chunk]:
    for chunk in stream.chunks(span):
        yield Chunk(chunk.pair.name, chunk.start, chunk.delta)


def _hashes(stream: DeltaStream, seed: int, scratch: Scratch, span: Span) -> Iterator[Chunk]:
    name, start = span.pair.name, span.start
    for hashes in hashed_range(start, span.stop, name_key(seed, name), stream.device, scratch):
        yield Chunk(name, start, hashes)
        start += hashes.numel()


def _changed_hashes(stream: DeltaStream, seed: int, span: Span) -> Iterator[Chunk]:
    name = span.pair.name
    for chunk in stream.chunks(span):
        for indices in runs_of_true(chunk.delta != 0):
            key = name_key(seed, name)
            yield Chunk(name, chunk.start, index_hash(indices.add_(chunk.start), key))


def edit_chunk(
    chunk: DeltaChunk,
    selection: Selection,
    rescale: Fraction | None,
    scratch: Scratch,
    dtype: torch.dtype | None = None,
) -> None:
    """Put the selected entries of a chunk back to the base, in place in `chunk.ft`.

    Args:
        chunk: of the delta.
        selection: on the unit of the chunk's tensor.
        rescale: the drop rate, to divide the remaining deltas by 1 - rate; None: do not rescale.
        scratch: memory for intermediate results.
        dtype: dtype in which the result will be held; None: the fine-tune's stored dtype.

    Raises:
        DeltaLensError: a rescaled or cast entry is outside the range of its dtype.
    """
    values = chunk.delta if selection.ranks else chunk.ft
    mask = selection.mask(chunk.pair.name, chunk.start, values, scratch)
    revert_to_base(chunk.ft, chunk.base, mask, rescale=rescale, out=chunk.ft, scratch=scratch)
    if rescale or chunk.base.dtype != chunk.ft.dtype:
        check_finite(chunk.ft, chunk.pair, chunk.start, rescale, dtype)


def check_finite(
    values: Tensor,
    pair: TensorPair,
    start: int,
    rescale: Fraction | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuse values that are not finite in the dtype in which they will be held.

    Args:
        values: consecutive entries of a tensor, 1-D, as they would be written.
        pair: the tensor.
        start: flat index of the first entry.
        rescale: the drop rate for which deltas were rescaled; None: they were not.
        dtype: dtype in which they will be held; None: that of `values`.

    Raises:
        DeltaLensError: names the tensor and the first such entry.
    """
    held = values if dtype is None else values.to(dtype)
    if bool(held.isfinite().all()):
        return
    name = str(held.dtype).removeprefix("torch.")
    index = start + int(where_true(~held.isfinite())[0])
    where = f"{pair.ft.file}: {pair.name!r}, flat index {index:,}"
    out_of_range = f"exceeds the largest {name} number, {torch.finfo(held.dtype).max:.4g}"
    if rescale:
        raise DeltaLensError(
            f"{where}: the value rescaled at rate {show_rate(rescale)} {out_of_range}; use smaller "
            "rates, or do not `rescale`"
        )
    raise DeltaLensError(
        f"{where}: the value of the base {out_of_range}; leave the tensor out with `exclude`, or "
        "store the fine-tune in a dtype of a larger range"
    )


def find_nonfinite(pairs: Sequence[TensorPair], stream: DeltaStream) -> DeltaLensError:
    """Make the error for a delta that is not finite.

    Args:
        pairs: tensors, at least one of which has such a delta.
        stream: reads the deltas.

    Returns:
        The error; it names the first such entry, its tensor and its model.
    """
    for chunk in (chunk for span in stream.parts(pairs) for chunk in stream.chunks(span)):
        bad = where_true(~chunk.delta.isfinite())
        if not bad.numel():
            continue
        first = int(bad[0])
        values = float(chunk.ft[first]), float(chunk.base[first])
        where = f"{chunk.pair.name!r}, flat index {chunk.start + first:,}"
        for model, value, entry in zip(
            ("fine-tune", "base"), values, (chunk.pair.ft, chunk.pair.base), strict=True
        ):
            if not math.isfinite(value):
                return DeltaLensError(
                    f"{entry.file}: {value} in the {model}'s tensor {where}; replace the damaged "
                    "checkpoint, or leave the tensor out with `exclude`"
                )
        return DeltaLensError(
            f"{chunk.pair.ft.file}: {where}: {values[0]} - {values[1]} overflows fp32 "
            f"(a trained model has no {torch_dtype(chunk.pair.ft)} weights of this size)"
        )
    raise AssertionError("every delta is finite")


def no_delta(pairing: Pairing) -> DeltaLensError:
    """Make the error for two models that do not differ.

    Args:
        pairing: of the two.

    Returns:
        The error.
    """
    return DeltaLensError(
        f"{pairing.ft.path} and {pairing.base.path} are identical in all {pairing.entries:,} "
        "entries that take part: there is no delta to study"
    )
