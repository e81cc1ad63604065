"""Which entries of a tensor stay when its lowest are removed: exact in number, ties or not.

Entries are ordered by the key (magnitude bits, or the value itself; then hash), and a prefix of
exactly the asked size goes. Where it ended last time, or a sample, says about where it ends; one
pass marks what lies above, and gathers the few about there, which then settle it. What misleads is
noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltalens.errors import DeltaLensError, said_by
from deltalens.numerics.bits import infinity_bits, integer_of, magnitude_bits
from deltalens.numerics.hashing import index_hash
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.bracket import around
from deltalens.numerics.workers import in_order, workers

__all__ = ["PARTS", "Bracket", "array_of", "keep_above", "keep_highest", "prepare"]

PARTS = 1 << 19
"""Entries given to one worker at a time; a multiple of 64."""
_MANY = 1 << 24
"""Entries from which on a pass over them is worth threads of its own."""

_SAMPLE = 1 << 14
_CROWDED = 1 / 64
"""Share of the entries from which on a bracket is worse than a sample's."""


class Bracket(NamedTuple):
    """Keys between which the last removed entry is looked for: from `low`, below `high`."""

    low: int
    high: int
    share: float
    """About how much of the tensor lies inside."""


class _Seen(NamedTuple):
    """What one pass found."""

    kept: PackedMask
    below: int
    places: np.ndarray
    """Flat indices of what lies in the bracket: int64."""
    keys: np.ndarray


def keep_highest(
    values: Tensor,
    removed: int,
    key: int,
    *,
    by_value: bool = False,
    name: str = "a tensor",
    near: Bracket | None = None,
) -> tuple[PackedMask, Bracket | None]:
    """All but the `removed` lowest entries.

    Args:
        values: 1-D, contiguous; fp16, bf16, fp32 or fp64; on any device.
        removed: how many go, from 0 to n. Of those that tie, the lowest hashes go first.
        key: of the hash (`hashing.name_key`).
        by_value: rank signed values (0 and -0 tie), not magnitudes.
        name: for the message.
        near: what came back for values of this tensor a little earlier: it saves the sample, and
            changes nothing else.

    Returns:
        The mask, and where to look first next time, if that is known.

    Raises:
        DeltaLensError: there is a NaN.
    """
    if not 0 <= removed <= values.numel():
        raise IndexError(f"{removed} of {values.numel()} entries")
    for bracket in _brackets(values, removed, by_value, near):
        seen = _visit(values, bracket, by_value, name)
        if seen is not None and seen.below <= removed <= seen.below + seen.keys.size:
            last = _settle(seen, removed - seen.below, key)
            return seen.kept, _next(near, bracket, last, seen.keys, values.numel())
    raise AssertionError("the last bracket is exact")


def keep_above(values: Tensor, threshold: float, *, name: str = "a tensor") -> PackedMask:
    """The entries whose value is greater than a threshold, rounded to their dtype.

    Args:
        values, name: as in `keep_highest`.
        threshold: signed; any number but NaN.

    Raises:
        DeltaLensError: there is a NaN.
    """
    end = int(_keys(torch.tensor([threshold], dtype=values.dtype), True)) + 1
    seen = _visit(values, Bracket(end, end, 0.0), True, name)
    assert seen is not None
    return seen.kept


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor on the CPU as an array to read, over the same memory.

    `Tensor.numpy` pins the memory for good, and FSDP2 could not let go of gathered parameters.
    """
    found: np.ndarray = np.from_dlpack(tensor.detach())
    return found


def prepare(dtype: torch.dtype) -> None:
    """Compile or load the loops for a dtype now, so that no step has to wait for it.

    Raises:
        DeltaLensError: numba cannot compile them.
    """
    with said_by("numba", f"the loops for {dtype} cannot be compiled"):
        keep_highest(torch.ones(64, dtype=dtype), 3, 0)


def _keys(values: Tensor, by_value: bool) -> Tensor:
    """Integers that sort as the entries are ranked."""
    sizes = magnitude_bits(values)
    return torch.where(values.view(sizes.dtype) < 0, -sizes, sizes) if by_value else sizes


def _brackets(
    values: Tensor, removed: int, by_value: bool, near: Bracket | None
) -> Iterator[Bracket]:
    """Where the last removed entry may be: one after the other, until one holds it."""
    if near is not None and near.share < _CROWDED:
        yield near
    yield _guess(values, removed, by_value)
    yield _exactly(values, removed, by_value)


def _next(
    near: Bracket | None, bracket: Bracket, last: int | None, keys: np.ndarray, size: int
) -> Bracket | None:
    """Around the last removed entry, four times as far as it came; far moves are forgotten slowly.

    Args:
        near: around where it was before, if that is known.
        bracket: where it was found.
        last: its key.
        keys: all that lie in the bracket.
        size: entries in all.
    """
    if last is None:
        return None
    half = (bracket.high - bracket.low) // 2
    reach = half if near is None else max(4 * abs(last - sum(near[:2]) // 2), half // 2)
    share = keys.size / size * (reach + 1) / (half + 1)
    ends = np.iinfo(keys.dtype)
    low, high = max(last - reach, int(ends.min)), min(last + reach + 1, int(ends.max))
    return Bracket(low, high, share)


def _guess(values: Tensor, removed: int, by_value: bool) -> Bracket:
    """From evenly spaced entries."""
    sample = values[:: max(1, values.numel() // _SAMPLE)].contiguous()
    keys = _keys(sample, by_value).cpu().numpy()
    ends = np.iinfo(keys.dtype)
    if not keys.size:
        return Bracket(0, 0, 0.0)
    first, last = around(removed, values.numel(), keys.size)
    keys.partition([place for place in (first, last) if 0 <= place < keys.size] or [0])
    low = int(keys[first]) if first >= 0 else int(ends.min)
    high = int(keys[last]) + 1 if last < keys.size else int(ends.max)
    inside = np.count_nonzero((keys >= low) & (keys < high))
    return Bracket(low, high, inside / keys.size)


def _exactly(values: Tensor, removed: int, by_value: bool) -> Bracket:
    """The key of the first entry that stays, or of the last, alone. Takes 8 bytes an entry."""
    keys = _keys(values, by_value).cpu().numpy().copy()
    place = min(removed, keys.size - 1)
    keys.partition(place)
    found = int(keys[place])
    return Bracket(found, found + 1, float(np.count_nonzero(keys == found) / keys.size))


def _visit(values: Tensor, bracket: Bracket, by_value: bool, name: str) -> _Seen | None:
    """One pass; None if far more lies in the bracket than was thought."""
    if values.device.type == "cpu":
        return _visit_here(values, bracket, by_value, name)
    return _visit_there(values, bracket, by_value, name)


def _visit_there(values: Tensor, bracket: Bracket, by_value: bool, name: str) -> _Seen:
    """In torch, where the values are."""
    if bool(values.isnan().any()):
        raise _broken(name)
    keys = _keys(values, by_value)
    above = keys >= bracket.high
    places = ((keys >= bracket.low) & ~above).nonzero().squeeze(1)
    kept = PackedMask(values.numel(), values.device)
    kept.write(0, above)
    below = values.numel() - int(above.count_nonzero()) - places.numel()
    return _Seen(kept, below, places.cpu().numpy(), keys[places].cpu().numpy())


def _visit_here(values: Tensor, bracket: Bracket, by_value: bool, name: str) -> _Seen | None:
    from deltalens.numerics import compiled_masks

    bits = array_of(values.view(integer_of(values.dtype)))
    ends = np.iinfo(bits.dtype)
    flag = ends.min if by_value else 0
    rule = np.array([ends.max, flag, infinity_bits(values.dtype)], dtype=bits.dtype)
    low, high = (np.array([end], dtype=bits.dtype) for end in bracket[:2])
    (kept,), (words,) = PackedMask.several(1, values.numel())

    def visit(start: int) -> tuple[int, int, int, np.ndarray, np.ndarray]:
        part = bits[start : start + PARTS]
        room = min(part.size, int(2 * bracket.share * part.size) + 4096) + 2
        places, keys = np.empty(room, np.int64), np.empty(room, bits.dtype)
        marked, found, broken = compiled_masks.mark_above(
            part, rule, low, high, words[start // 32 :], places, keys
        )
        fits = found + 1 < room
        places[:found] += start
        return marked, found if fits else -1, broken, places[:found], keys[:found]

    starts = range(0, bits.size, PARTS)
    if bits.size < _MANY:
        parts = list(in_order(visit, starts))
    else:
        with workers() as each:
            parts = list(each(visit, starts))
    if any(part[2] for part in parts):
        raise _broken(name)
    if any(part[1] < 0 for part in parts):
        return None
    places = np.concatenate([np.empty(0, np.int64), *(part[3] for part in parts)])
    keys = np.concatenate([np.empty(0, bits.dtype), *(part[4] for part in parts)])
    return _Seen(kept, bits.size - sum(part[0] for part in parts) - keys.size, places, keys)


def _broken(name: str) -> DeltaLensError:
    return DeltaLensError(f"{name}: NaN among what is to be ranked; has the training diverged?")


def _settle(seen: _Seen, removed: int, key: int) -> int | None:
    """Make true, of what lies in the bracket, all but the lowest `removed`. The key of the last of
    these, if there is one."""
    places, keys = seen.places, seen.keys
    if not removed:
        _include(seen.kept, places)
        return None
    last = np.partition(keys, removed - 1)[removed - 1]
    stays = keys > last
    tied = np.flatnonzero(keys == last)
    more = removed - int(np.count_nonzero(keys < last))
    hashes = index_hash(torch.from_numpy(places[tied].copy()), key).numpy()
    stays[tied[hashes.argsort()[more:]]] = True
    _include(seen.kept, places[stays])
    return int(last)


def _include(kept: PackedMask, places: np.ndarray) -> None:
    if kept.bytes.device.type == "cpu":
        from deltalens.numerics.selection import loops as compiled

        compiled.set_bits(kept.words, places, np.ones(places.size, np.int8), 1)
        return
    mask = kept.unpacked()
    mask[torch.from_numpy(places).to(mask.device)] = True
    kept.write(0, mask)
