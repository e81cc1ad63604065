"""Visits of entries that come in chunks, mostly from files: numpy on the CPU, torch elsewhere."""

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
from deltalens.numerics.selection.searches import DigitWindow
from deltalens.numerics.selection.windows import Candidates, Observed, Window
from deltalens.numerics.sizes import SIZES
from deltalens.numerics.workers import Mapper

__all__ = ["Stream", "hashes_of"]


class Stream:
    """A unit's chunks, ranked by magnitude and then by hash, or by hash alone.

    Args:
        source: chunks of one dtype (fp16, bf16, fp32, fp64), or of the hashes of all entries.
        mapper: how the parts are visited.
        seed: seed of the hash; None if the source gives hashes.
        count_all: whether a visit counts everything below a window; otherwise it counts, among the
            entries that tie at the window's single key, those with lesser hashes.
        masks: tensor name -> bool mask, 1-D, in which hashes up to the end of a single window are
            set to true, and all others to false.
    """

    def __init__(
        self,
        source: Source,
        mapper: Mapper,
        seed: int | None = None,
        count_all: bool = False,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._source, self._mapper, self._seed, self._count_all = source, mapper, seed, count_all
        self._masks, self._scratch = masks, Scratch()

    def count(self) -> Counts | None:
        """Count the magnitudes of all chunks.

        Returns:
            The counts; None if there are no chunks.
        """
        total: Counts | None = None
        for counts in self._mapper(self._count, self._source):
            if total is None:
                total = counts
            elif counts is not None:
                total.merge(counts)
        return total

    def _count(self, part: Part) -> Counts | None:
        counts: Counts | None = None
        for chunk in part():
            if counts is None:
                counts = Counts.empty(chunk.values.dtype, chunk.values.device)
            counts.update(chunk.values, self._scratch)
        return counts

    def _bits(self, values: Tensor) -> Tensor:
        buffer = self._scratch.get("bits", integer_of(values.dtype), values.numel(), values.device)
        return magnitude_bits(values, out=buffer)

    def _mask(self, what: str, like: Tensor) -> Tensor:
        return self._scratch.get(what, torch.bool, like.numel(), like.device)

    def digits(self, windows: Sequence[DigitWindow]) -> list[Tensor]:
        """Count the entries in each window by their next digit.

        Args:
            windows: windows of one unit.

        Returns:
            For each window int64, (1, R, 2^digit bits).
        """
        return [self._digits(window) for window in windows]

    def _digits(self, window: DigitWindow) -> Tensor:
        bits_left, bins, lock = window.bits_left, 1 << window.digit_bits, threading.Lock()
        levels, rows = window.leading[0].unique(return_inverse=True)
        counts = torch.zeros((levels.numel(), bins), dtype=torch.int64)
        row_of_level = dict(zip(levels.tolist(), counts, strict=True))

        def count(part: Part) -> None:
            for chunk in part():
                bits = self._bits(chunk.values)
                relative = self._scratch.get("relative", bits.dtype, bits.numel(), bits.device)
                for level, row in row_of_level.items():
                    torch.bitwise_xor(bits, level << bits_left, out=relative)
                    matches = less(relative, 1 << bits_left, out=self._mask("within", bits))
                    digits = take(relative, matches) >> (bits_left - window.digit_bits)
                    if digits.numel():
                        digit_counts = torch.bincount(digits, minlength=bins).cpu()
                        with lock:
                            row += digit_counts

        for _ in self._mapper(count, self._source):
            pass
        return (counts if levels.equal(window.leading[0]) else counts[rows])[None]

    def visit(self, windows: Sequence[Window]) -> list[Observed]:
        """Observe what lies in each window, and how much lies below it.

        Args:
            windows: the windows.

        Returns:
            What was observed in each.
        """
        observed = {window: Observed() for window in windows}
        spans: dict[tuple[int, int], list[Window]] = {}
        for window in observed:
            spans.setdefault(window[:2], []).append(window)
        for part_observed in self._mapper(functools.partial(self._visit_part, spans), self._source):
            for window, more in part_observed.items():
                observed[window].add(more)
        return [observed[window] for window in windows]

    def _visit_part(
        self, spans: Mapping[tuple[int, int], Sequence[Window]], part: Part
    ) -> dict[Window, Observed]:
        """What one part has for every window; windows over the same keys share the hashes."""
        observed = {window: Observed() for windows in spans.values() for window in windows}
        for name, start, values in part():
            if self._seed is None:
                for window, window_observed in observed.items():
                    self._gather(window_observed, window, name, None, values, start)
                continue
            bits, key = self._bits(values), name_key(self._seed, name)
            for (low, high), windows in spans.items():
                single = high == low + 1
                if self._count_all:
                    under = less(bits, low, out=self._mask("under", bits))
                    for window in windows:
                        observed[window].below += count_true(under)
                        observed[window].zeros += count_zeros(bits)
                        observed[window].finite &= largest(bits) < infinity_bits(values.dtype)
                    if high == low:
                        continue
                    within = less_equal(bits, high - 1, out=self._mask("within", bits))
                    within.logical_xor_(under)
                else:
                    within = equal(bits, low, out=self._mask("within", bits))
                for indices in runs_of_true(within):
                    keys = None if single else take_at(bits, indices)
                    hashes = index_hash(indices.add_(start), key)
                    for window in windows:
                        self._gather(observed[window], window, name, keys, hashes)
        return observed

    def _gather(
        self,
        observed: Observed,
        window: Window,
        name: str,
        keys: Tensor | None,
        hashes: Tensor,
        start: int = 0,
    ) -> None:
        """Gather the entries whose hashes lie in a window, and count those below.

        Args:
            observed: what they are added to.
            window: the window; the entries' keys lie in it.
            name: their tensor's name.
            keys: their keys; None if all have the window's single key.
            hashes: their hashes.
            start: flat index of the first entry, if a mask is made.
        """
        if keys is not None:
            _gather_keys(observed, window, name, keys.cpu().numpy(), hashes.cpu().numpy())
            return
        before_low = less(hashes, window.low_hash, out=self._mask("earlier", hashes))
        if self._masks is None:
            up_to_high = self._mask("upto", hashes)
        else:
            up_to_high = self._masks[name][start : start + hashes.numel()]
        less_equal(hashes, window.high_hash, out=up_to_high)
        observed.below += count_true(before_low)
        kept = where_true(before_low.logical_xor_(up_to_high))
        if kept.numel():
            indices = None if self._masks is None else (kept + start).cpu().numpy()
            observed.candidates.append(
                Candidates(name, None, indices, take_at(hashes, kept).cpu().numpy())
            )


def _gather_keys(
    observed: Observed, window: Window, name: str, keys: np.ndarray, hashes: np.ndarray
) -> None:
    """`_gather` for a window of several keys: hashes matter only at its ends."""
    before_low = (keys == window.low) & (hashes < window.low_hash)
    after_high = (keys == window.high - 1) & (hashes > window.high_hash)
    observed.below += int(np.count_nonzero(before_low))
    kept = np.flatnonzero(~(before_low | after_high))
    observed.candidates.append(Candidates(name, keys[kept], None, hashes[kept]))


def hashes_of(sizes: Mapping[str, int], seed: int, device: torch.device) -> Source:
    """Make a source of the hashes of all entries of some tensors.

    Args:
        sizes: tensor name -> number of entries.
        seed: seed of the hash.
        device: where the hashes are computed.

    Returns:
        The source.
    """
    scratch = Scratch()

    def part(name: str, start: int, stop: int) -> Iterator[Chunk]:
        for hashes in hashed_range(start, stop, name_key(seed, name), device, scratch):
            yield Chunk(name, start, hashes)
            start += hashes.numel()

    step = SIZES.part
    return [
        functools.partial(part, name, start, min(start + step, size))
        for name, size in sizes.items()
        for start in range(0, size, step)
    ]
