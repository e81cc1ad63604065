"""From a pairing and the settings of a drop to the exact entries it takes, unit by unit."""

from __future__ import annotations

import functools
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
"""Entries up to which a single setting is found in one pass, in which what lies near is gathered
(one entry in fifty, at 12 bytes, and copies of it) or the mask of a random drop kept (a byte each).
Beyond, memory does not grow with the unit."""


@dataclass(frozen=True)
class DropSetting:
    """One drop: what goes first, how much of it, and whose randomness."""

    strategy: Strategy
    rate: Fraction
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.strategy} {show_rate(self.rate)}, seed {self.seed}"


@dataclass(frozen=True)
class UnitSelections:
    """What each setting takes from one unit."""

    unit: Unit
    selections: dict[DropSetting, Selection]
    counts: dict[DropSetting, int]
    """Entries put back."""
    unchanged: int | None
    """Entries whose delta is exactly 0; None where no setting needed to know."""


def check_strategy(name: str) -> Strategy:
    """A strategy's name, checked.

    Raises:
        DeltaLensError: it is none of salient, trivial, random.
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
    """The selections of all settings on one unit: of a single one from a sample, of several from
    one pass that counts the deltas.

    Where every setting is `random` over all entries, the deltas are not read at all.

    Raises:
        DeltaLensError: a NaN or an infinity in either model (the tensor is named).
    """
    if len(settings) == 1 and not changed_only:
        found = _select_one(unit, settings[0], stream, mapper)
        if found is not None:
            return found
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
    """A single setting, over all entries, in one pass; None if that is not to be had."""
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
    found = find_boundary(
        [functools.partial(_deltas, stream, span) for span in stream.parts(unit.pairs)],
        prefix_size(setting.strategy, setting.rate, unit.entries),
        unit.entries,
        stream.sample(unit.pairs, sample_stride(unit.entries)),
        setting.seed,
        mapper,
    )
    if not found.finite:
        raise find_nonfinite(unit.pairs, stream)
    if found.boundary is None:
        return None
    selection = Selection(setting.strategy, found.boundary, setting.seed)
    return UnitSelections(unit, {setting: selection}, {setting: count}, found.zeros)


def _by_seed(settings: Iterable[DropSetting]) -> Iterator[tuple[int, list[DropSetting]]]:
    groups: dict[int, list[DropSetting]] = {}
    for setting in settings:
        groups.setdefault(setting.seed, []).append(setting)
    yield from groups.items()


def _deltas(stream: DeltaStream, span: Span) -> Iterator[Chunk]:
    for chunk in stream.chunks(span):
        yield Chunk(chunk.pair.name, chunk.start, chunk.delta)


def _hashes(stream: DeltaStream, seed: int, scratch: Scratch, span: Span) -> Iterator[Chunk]:
    name, at = span.pair.name, span.start
    for hashes in hashed_range(at, span.stop, name_key(seed, name), stream.device, scratch):
        yield Chunk(name, at, hashes)
        at += hashes.numel()


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
    """Put the selected entries of a chunk back, in place in `chunk.ft`.

    Args:
        chunk: of the delta.
        selection: of its tensor's unit.
        rescale: the drop rate, if what is kept is to be divided by 1 - rate.
        scratch: for what is made on the way.
        dtype: what the result will be held in, if not in the fine-tune's stored dtype.

    Raises:
        DeltaLensError: an entry becomes infinite: rescaled or cast, it is beyond a dtype's numbers.
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
    """Refuse numbers that a dtype cannot hold.

    Args:
        values: entries of a tensor from `start` on, as they would be written.
        pair: whose they are.
        start: flat index of the first.
        rescale: by which rate they were rescaled, if they were.
        dtype: what they will be held in, if not in their own.

    Raises:
        DeltaLensError: one is not finite there.
    """
    held = values if dtype is None else values.to(dtype)
    if bool(held.isfinite().all()):
        return
    name = str(held.dtype).removeprefix("torch.")
    at = start + int(where_true(~held.isfinite())[0])
    where = f"{pair.ft.file}: {pair.name!r}, flat index {at:,}"
    largest = f"beyond {name}'s largest number, {torch.finfo(held.dtype).max:.4g}"
    if rescale:
        raise DeltaLensError(
            f"{where}: rescaled at rate {show_rate(rescale)} it is {largest}; take smaller rates, "
            "or leave --rescale (rescale=...) away"
        )
    raise DeltaLensError(
        f"{where}: the base's number is {largest}; leave the tensor out with --exclude "
        "(exclude=...), or store the fine-tune in a dtype that holds it"
    )


def find_nonfinite(pairs: Sequence[TensorPair], stream: DeltaStream) -> DeltaLensError:
    """The error for a delta that is not finite: in which tensor of which model the first is."""
    for chunk in (chunk for span in stream.parts(pairs) for chunk in stream.chunks(span)):
        bad = where_true(~chunk.delta.isfinite())
        if not bad.numel():
            continue
        at = int(bad[0])
        values = float(chunk.ft[at]), float(chunk.base[at])
        where = f"{chunk.pair.name!r}, flat index {chunk.start + at:,}"
        for model, value, entry in zip(
            ("fine-tune", "base"), values, (chunk.pair.ft, chunk.pair.base), strict=True
        ):
            if value in (float("inf"), float("-inf")) or value != value:
                return DeltaLensError(
                    f"{entry.file}: {value} in the {model}'s tensor {where}; the model is broken, "
                    "or leave the tensor out with --exclude (exclude=...)"
                )
        return DeltaLensError(
            f"{chunk.pair.ft.file}: {where}: {values[0]} - {values[1]} overflows fp32 "
            f"({torch_dtype(chunk.pair.ft)} weights this large are not a trained model's)"
        )
    raise AssertionError("asked to find what is not there")


def no_delta(pairing: Pairing) -> DeltaLensError:
    """The error for two models that do not differ."""
    return DeltaLensError(
        f"{pairing.ft.path} and {pairing.base.path} are identical in all {pairing.entries:,} "
        "entries that take part: there is no delta to study"
    )
