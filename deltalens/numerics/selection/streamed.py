"""Visits of entries that come in chunks, from files mostly: numpy on the CPU, elsewhere torch."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from deltalens.numerics.bits import infinity_bits, integer_of, magnitude_bits
from deltalens.numerics.hashing import hashed_range, index_hash, name_key
from deltalens.numerics.kernels import (
    count_true,
    count_zeros,
    equal,
    largest,
    less,
    less_equal,
    runs_of_true,
    take,
    take_at,
    where_true,
)
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.counts import Counts
from deltalens.numerics.selection.keys import Chunk, Part, Source
from deltalens.numerics.selection.windows import Candidates, DigitWindow, Observed, Window
from deltalens.numerics.sizes import SIZES
from deltalens.numerics.workers import Mapper

__all__ = ["Stream", "hashes_of"]


class Stream:
    """A unit's chunks, ranked by magnitude, then by hash; or by hash alone.

    Args:
        source: all of one dtype (fp16, bf16, fp32, fp64); or the hashes of all entries.
        mapper: how to visit the parts.
        seed: of the hash; None where hashes are given.
        whole: whether a visit counts all that lies below a window; else, of what ties at its single
            key, the lesser hashes.
        masks: of whole tensors, bool, 1-D, in which hashes up to the end of a single window are
            made true, and all others false.
    """

    def __init__(
        self,
        source: Source,
        mapper: Mapper,
        seed: int | None = None,
        whole: bool = False,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._source, self._mapper, self._seed, self._whole = source, mapper, seed, whole
        self._masks, self._scratch = masks, Scratch()

    def count(self) -> Counts | None:
        """The counts of all chunks; None if there is none."""
        whole: Counts | None = None
        for counts in self._mapper(self._count, self._source):
            if whole is None:
                whole = counts
            elif counts is not None:
                whole.merge(counts)
        return whole

    def _count(self, part: Part) -> Counts | None:
        counts: Counts | None = None
        for chunk in part():
            if counts is None:
                counts = Counts.empty(chunk.values.dtype, chunk.values.device)
            counts.update(chunk.values, self._scratch)
        return counts

    def _bits(self, values: Tensor) -> Tensor:
        room = self._scratch.get("bits", integer_of(values.dtype), values.numel(), values.device)
        return magnitude_bits(values, out=room)

    def _mask(self, what: str, like: Tensor) -> Tensor:
        return self._scratch.get(what, torch.bool, like.numel(), like.device)

    def digits(self, windows: Sequence[DigitWindow]) -> list[Tensor]:
        """Of each window's entries (of one unit), how many have each next digit."""
        return [self._digits(window) for window in windows]

    def _digits(self, window: DigitWindow) -> Tensor:
        lower, bins, adding = window.lower, 1 << window.digit, threading.Lock()
        levels, rows = window.leading[0].unique(return_inverse=True)
        counts = torch.zeros((levels.numel(), bins), dtype=torch.int64)
        whole = dict(zip(levels.tolist(), counts, strict=True))

        def count(part: Part) -> None:
            for chunk in part():
                bits = self._bits(chunk.values)
                relative = self._scratch.get("relative", bits.dtype, bits.numel(), bits.device)
                for level, row in whole.items():
                    torch.bitwise_xor(bits, level << lower, out=relative)
                    mask = less(relative, 1 << lower, out=self._mask("within", bits))
                    inside = take(relative, mask) >> (lower - window.digit)
                    if inside.numel():
                        found = torch.bincount(inside, minlength=bins).cpu()
                        with adding:
                            row += found

        for _ in self._mapper(count, self._source):
            pass
        return (counts if levels.equal(window.leading[0]) else counts[rows])[None]

    def visit(self, windows: Sequence[Window]) -> list[Observed]:
        """What lies in each window, and how much below it."""
        seen = {window: Observed() for window in windows}
        spans: dict[tuple[int, int], list[Window]] = {}
        for window in seen:
            spans.setdefault(window[:2], []).append(window)
        for found in self._mapper(functools.partial(self._look, spans), self._source):
            for window, some in found.items():
                seen[window].add(some)
        return [seen[window] for window in windows]

    def _look(
        self, spans: Mapping[tuple[int, int], Sequence[Window]], part: Part
    ) -> dict[Window, Observed]:
        """What one part has for every window; those over the same keys share the hashes."""
        seen = {window: Observed() for windows in spans.values() for window in windows}
        for name, start, values in part():
            if self._seed is None:
                for window, some in seen.items():
                    self._keep(some, window, name, None, values, start)
                continue
            bits, key = self._bits(values), name_key(self._seed, name)
            for (low, high), windows in spans.items():
                single = high == low + 1
                if self._whole:
                    under = less(bits, low, out=self._mask("under", bits))
                    for window in windows:
                        seen[window].below += count_true(under)
                        seen[window].zeros += count_zeros(bits)
                        seen[window].finite &= largest(bits) < infinity_bits(values.dtype)
                    if high == low:
                        continue
                    within = less_equal(bits, high - 1, out=self._mask("within", bits))
                    within.logical_xor_(under)
                else:
                    within = equal(bits, low, out=self._mask("within", bits))
                for indices in runs_of_true(within):
                    inside = None if single else take_at(bits, indices)
                    hashes = index_hash(indices.add_(start), key)
                    for window in windows:
                        self._keep(seen[window], window, name, inside, hashes)
        return seen

    def _keep(
        self,
        seen: Observed,
        window: Window,
        name: str,
        keys: Tensor | None,
        hashes: Tensor,
        start: int = 0,
    ) -> None:
        """Gather, of entries whose keys lie in a window, those whose hashes do; count those below.

        Args:
            seen: what they are added to.
            window: the window.
            name: of their tensor.
            keys: of the entries; None if all have the window's single one.
            hashes: of the entries.
            start: flat index of the first, where a mask is made.
        """
        if keys is not None:
            _keep_keys(seen, window, name, keys.cpu().numpy(), hashes.cpu().numpy())
            return
        under = less(hashes, window.low_hash, out=self._mask("earlier", hashes))
        if self._masks is None:
            upto = self._mask("upto", hashes)
        else:
            upto = self._masks[name][start : start + hashes.numel()]
        less_equal(hashes, window.high_hash, out=upto)
        seen.below += count_true(under)
        kept = where_true(under.logical_xor_(upto))
        if kept.numel():
            places = None if self._masks is None else (kept + start).cpu().numpy()
            seen.inside.append(Candidates(name, None, places, take_at(hashes, kept).cpu().numpy()))


def _keep_keys(
    seen: Observed, window: Window, name: str, keys: np.ndarray, hashes: np.ndarray
) -> None:
    """`_keep`, in a window of several keys: hashes matter at its ends."""
    early = (keys == window.low) & (hashes < window.low_hash)
    late = (keys == window.high - 1) & (hashes > window.high_hash)
    seen.below += int(np.count_nonzero(early))
    kept = np.flatnonzero(~(early | late))
    seen.inside.append(Candidates(name, keys[kept], None, hashes[kept]))


def hashes_of(sizes: Mapping[str, int], seed: int, device: torch.device) -> Source:
    """The hashes of all entries of some tensors: name -> entries."""
    scratch = Scratch()

    def part(name: str, at: int, stop: int) -> Iterator[Chunk]:
        for hashes in hashed_range(at, stop, name_key(seed, name), device, scratch):
            yield Chunk(name, at, hashes)
            at += hashes.numel()

    step = SIZES.part
    return [
        functools.partial(part, name, at, min(at + step, size))
        for name, size in sizes.items()
        for at in range(0, size, step)
    ]
