"""Tensors in memory whose lowest entries go, by magnitude or by value: exact in number.

One visit marks what lies above a window, and gathers the few inside, which then settle it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deltalens.errors import DeltaLensError
from deltalens.numerics.bits import TASK, array_view, infinity_bits, integer_of
from deltalens.numerics.masks import PackedMask
from deltalens.numerics.selection.keys import keys_of
from deltalens.numerics.selection.prefix import Boundary
from deltalens.numerics.selection.windows import Candidates, Observed, Window
from deltalens.numerics.workers import serial_map, workers

__all__ = ["KeepVisit"]

_MANY = 1 << 24
"""Entries from which on a pass over them is worth threads of its own."""


class KeepVisit:
    """A mask of the entries of a tensor whose keys lie beyond a prefix.

    Args:
        values: 1-D, contiguous; fp16, bf16, fp32 or fp64; on any device.
        name: for the message.
        by_value: rank signed values (0 and -0 tie), not magnitudes.
        hash_key: of the hash (`hashing.name_key`).
    """

    def __init__(self, values: Tensor, name: str, by_value: bool, hash_key: int) -> None:
        self._values, self._name, self._by_value = values, name, by_value
        self._hash_key = hash_key
        self.mask: PackedMask
        self.window: Window
        """That was visited last."""
        self.seen: Observed

    def __call__(self, windows: Sequence[Window]) -> list[Observed]:
        """Mark what lies above the window.

        Raises:
            DeltaLensError: there is a NaN.
        """
        (self.window,) = windows
        on_cpu = self._values.device.type == "cpu"
        self.seen = (self.mark_compiled if on_cpu else self.mark_in_torch)(self.window)
        return [self.seen]

    def _seen_of(self, marked: int, places: np.ndarray, keys: np.ndarray) -> Observed:
        inside = Candidates(self._name, keys, places, None, self._hash_key)
        return Observed(self._values.numel() - marked - keys.size, [inside])

    def mark_in_torch(self, window: Window) -> Observed:
        """Mark what lies above a window, in torch, on the device of the values.

        Returns:
            What lies below and inside.

        Raises:
            DeltaLensError: there is a NaN.
        """
        values = self._values
        if bool(values.isnan().any()):
            raise self._broken()
        keys = keys_of(values, self._by_value)
        above = keys >= window.high
        places = ((keys >= window.low) & ~above).nonzero().squeeze(1)
        self.mask = PackedMask(values.numel(), values.device)
        self.mask.write(0, above)
        marked = int(above.count_nonzero())
        return self._seen_of(marked, places.cpu().numpy(), keys[places].cpu().numpy())

    def mark_compiled(self, window: Window) -> Observed:
        """`mark_in_torch` in compiled loops, for values on the CPU.

        Returns:
            What lies below and inside; nothing where far more lies inside than was thought.

        Raises:
            DeltaLensError: there is a NaN.
        """
        from deltalens.numerics.selection import loops

        bits = array_view(self._values.view(integer_of(self._values.dtype)))
        ends = np.iinfo(bits.dtype)
        flag = ends.min if self._by_value else 0
        rule = np.array([ends.max, flag, infinity_bits(self._values.dtype)], dtype=bits.dtype)
        low, high = (np.array([min(end, ends.max)], dtype=bits.dtype) for end in window[:2])
        (self.mask,), (words,) = PackedMask.several(1, bits.size)

        def visit(start: int) -> tuple[int, int, int, np.ndarray, np.ndarray]:
            part = bits[start : start + TASK]
            room = min(part.size, int(2 * window.share * part.size) + 4096) + 2
            places, keys = np.empty(room, np.int64), np.empty(room, bits.dtype)
            marked, found, broken = loops.mark_above(
                part, rule, low, high, words[start // 32 :], places, keys
            )
            fits = found + 1 < room
            places[:found] += start
            return marked, found if fits else -1, broken, places[:found], keys[:found]

        starts = range(0, bits.size, TASK)
        if bits.size < _MANY:
            parts = list(serial_map(visit, starts))
        else:
            with workers() as mapper:
                parts = list(mapper(visit, starts))
        if any(part[2] for part in parts):
            raise self._broken()
        if any(part[1] < 0 for part in parts):
            # Far more lies in the window than was thought: as good as a miss.
            return Observed(bits.size)
        places = np.concatenate([np.empty(0, np.int64), *(part[3] for part in parts)])
        keys = np.concatenate([np.empty(0, bits.dtype), *(part[4] for part in parts)])
        return self._seen_of(sum(part[0] for part in parts), places, keys)

    def _broken(self) -> DeltaLensError:
        return DeltaLensError(
            f"{self._name}: NaN among what is to be ranked; has the training diverged?"
        )

    def finish(self, boundary: Boundary) -> None:
        """Make true, of what lies in the window, all that is beyond the boundary."""
        for one in self.seen.inside:
            assert one.keys is not None
            assert one.places is not None
            stays = one.keys >= boundary.below
            if boundary.tie is not None:
                tied = np.flatnonzero(one.keys == boundary.below)
                stays[tied] = one.hashes_at(tied) > boundary.tie.hash
            self._include(one.places[stays])

    def _include(self, places: np.ndarray) -> None:
        mask = self.mask
        if mask.bytes.device.type == "cpu":
            from deltalens.numerics import compiled_masks

            compiled_masks.set_bits(mask.words, places, np.ones(places.size, np.int8), 1)
            return
        whole = mask.unpacked()
        whole[torch.from_numpy(places).to(whole.device)] = True
        mask.write(0, whole)
