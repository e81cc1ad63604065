"""The trained entries of one weight: where they are, what was there, and what is added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError
from deltalens.io.sparse_file import StoredEntries
from deltalens.methods.mask_layers import Layer
from deltalens.methods.sparse.refresh import StepsOfValues
from deltalens.methods.weight_masks import weight_digest
from deltalens.numerics.sampled import Places, TurnedColumns

__all__ = ["NEEDED", "STORED", "TrainedEntries"]

_INDICES, _START = "sparse_indices", "sparse_start"
_TOUCHED, _ORIGINALS = "sparse_touched", "sparse_originals"
_CLOCK = "sparse_clock"
_OWN = 1 / 3
"""The share of an input that a layer keeps by itself: up to three layers (query, key and value)
read one, which they could share."""
NEEDED = (_INDICES, _START)
"""What every checkpoint of a layer has beside weight and values."""
STORED = (*NEEDED, _TOUCHED, _ORIGINALS, _CLOCK)
"""What a checkpoint may have."""


class TrainedEntries:
    """The trained entries of one layer's weight.

    Memory: of k entries the values (4 bytes), a place (4 bytes) and the weight's numbers before,
    and 4 bytes for each row of the weight, or 8 for each with entries where those are few, and 4
    for each column.

    Args:
        layer: the layer; its weight is contiguous.
        flat: ascending flat indices of the entries, (k,).
        read: the columns of the input that was read last, shared by the layers.
        rows_are_inputs: whether the weight is (inputs, outputs).
    """

    def __init__(
        self, layer: Layer, flat: Tensor, read: TurnedColumns, rows_are_inputs: bool
    ) -> None:
        weight = layer.module.get_parameter("weight")
        self.name, self.read = layer.weight_name, read
        self.rows_are_inputs = rows_are_inputs
        wide = weight.dtype == torch.float64
        self.values = nn.Parameter(
            torch.zeros(flat.numel(), dtype=torch.float64 if wide else torch.float32).to(
                weight.device
            )
        )
        """What is added to each entry, (k,): fp32, or fp64 where the weight is."""
        self.places = Places.of((weight.shape[0], weight.shape[1]), flat.to(weight.device))
        """Where they are."""
        self.start = self._take(weight)
        """What the weight has at each of them without its value, (k,), in the weight's dtype."""
        self.touched, self.originals = self.places, self.start
        """Every entry that a mask has held so far, and the base's number there."""
        self.clock: StepsOfValues | None = None
        """The steps of the whole tuning; one layer's entries keep them in checkpoints."""
        self._written = self.values._version

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        # The entries of a copied or pickled model train on without the tuning.
        return {**self.__dict__, "clock": None}

    @property
    def columns_to_keep(self) -> Tensor | None:
        """The inputs that the backward pass needs, int32; None if it had better keep all."""
        read = self.places.rows if self.rows_are_inputs else self.places.columns
        inputs = self.places.shape[0 if self.rows_are_inputs else 1]
        return read if read is not None and read.numel() <= _OWN * inputs else None

    def _take(self, weight: Tensor) -> Tensor:
        return weight.detach().view(-1)[self.places.flat]

    def write(self, weight: Tensor, always: bool = False) -> None:
        """Write base + values into the weight, rounded once to its dtype, if the values changed.

        Args:
            weight: the layer's.
            always: also if no change is known: optimizers may write through `.data`.
        """
        known = self.values._version == self._written
        if known and not always:
            return
        flat, numbers = self.places.flat, self.start.to(self.values.dtype) + self.values.detach()
        # What autograd has saved of a weight stays valid where nothing changes.
        if not known or not torch.equal(weight.detach().view(-1)[flat], numbers.to(weight.dtype)):
            self._put(weight, flat, numbers)
        self._written = self.values._version

    @staticmethod
    def _put(weight: Tensor, flat: Tensor, numbers: Tensor) -> None:
        with torch.no_grad():
            weight.view(-1).scatter_(0, flat, numbers.to(weight.dtype))

    def move(self, weight: Tensor, flat: Tensor) -> None:
        """Keep what was learned in the weight, and train other entries from there.

        Args:
            weight: the layer's.
            flat: ascending flat indices of the new entries.
        """
        self.write(weight, always=True)
        fresh = Places.of(self.places.shape, flat.to(weight.device))
        known, chosen = self.touched.flat, fresh.flat
        new = chosen[~torch.isin(chosen, known)]
        touched = torch.cat([known, new])
        originals = torch.cat([self.originals, weight.detach().view(-1)[new]])
        order = touched.argsort()
        self.adopt(touched[order], originals[order])
        self.places = fresh
        self.start = self._take(weight)
        # The parameter stays the same object, which optimizers and DDP hold.
        self.values.grad = None
        dtype = self.values.dtype
        if flat.numel() != self.values.numel():
            # While a loss of before is alive, torch expects gradients of the old size; it starts
            # afresh where the dtype changes.
            self.values.data = self.values.data.to(torch.float16)
        self.values.data = torch.zeros(flat.numel(), dtype=dtype, device=self.values.device)
        self._written = self.values._version

    @property
    def moved(self) -> bool:
        """Whether there has been more than one mask."""
        return self.touched is not self.places

    def adopt(self, touched: Tensor, originals: Tensor) -> None:
        """Take over what earlier masks have changed.

        Args:
            touched: ascending flat indices of all entries that a mask has held.
            originals: the base's numbers there.
        """
        self.touched = Places.of(self.places.shape, touched.to(self.start.device))
        self.originals = originals.to(self.start)

    def restart(self, stored: StoredEntries, originals: Tensor | None) -> None:
        """Go on from what an adapter's file has.

        Args:
            stored: of this weight, with the same entries.
            originals: the base's numbers at all entries that a mask has held; None if there was
                one mask.
        """
        if stored.folded_indices is not None and originals is not None:
            self.adopt(stored.folded_indices, originals)
        with torch.no_grad():
            self.values.copy_(stored.values)

    def undo(self, weight: Tensor) -> None:
        """Give the weight its base numbers back, bit for bit.

        Args:
            weight: the layer's.
        """
        self._put(weight, self.touched.flat, self.originals)

    def keep_dtype(self, before: Tensor) -> None:
        """Keep the values' precision where a model is converted to a narrower dtype.

        Args:
            before: the values before that.
        """
        values = self.values
        if values.dtype in (torch.float16, torch.bfloat16):
            gradient, values.grad = values.grad, None
            values.data = before.to(values.device)
            values.grad = None if gradient is None else gradient.to(values.dtype)

    def to(self, device: torch.device) -> None:
        """Move all but the values, which move with the model.

        Args:
            device: of the weight.
        """
        if self.start.device == device:
            return
        static = not self.moved
        self.places, self.start = self.places.to(device), self.start.to(device)
        self.touched = self.places if static else self.touched.to(device)
        self.originals = self.start if static else self.originals.to(device)

    def stored(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside weight and values.

        Returns:
            Name behind the layer's -> tensor.
        """
        stored = {_INDICES: _compact(self.places), _START: self.start}
        if self.moved:
            stored |= {_TOUCHED: _compact(self.touched), _ORIGINALS: self.originals}
        if self.clock is not None:
            stored[_CLOCK] = torch.tensor(self.clock.state, dtype=torch.int64)
        return stored

    def as_stored(self, weight: Tensor) -> StoredEntries:
        """The entries as an adapter's file has them.

        Args:
            weight: the layer's.

        Returns:
            Copies.
        """
        weight = weight.detach()
        base = weight.clone()
        self.undo(base)
        both: tuple[Tensor | None, Tensor | None] = None, None
        if self.moved:
            plain = weight.clone()
            self._put(plain, self.places.flat, self.start)
            both = _compact(self.touched), plain.view(-1)[self.touched.flat]
        flat, values = _compact(self.places), self.values.detach().clone()
        return StoredEntries(self.name, self.places.shape, weight_digest(base), flat, values, *both)

    def differences(self, weight: Tensor) -> StoredEntries:
        """What differs from the base at all entries that a mask has held.

        Args:
            weight: the layer's.

        Returns:
            Flat indices and differences, in the values' dtype.
        """
        flat, differences = self.touched.flat, self.values.detach()
        if self.moved:
            numbers = weight.detach().view(-1)[flat].to(self.values.dtype)
            differences = numbers - self.originals.to(self.values.dtype)
        return StoredEntries(self.name, self.places.shape, "", flat, differences)

    def load(
        self, weight: Tensor, stored: Tensor, found: dict[str, Tensor], values: Tensor
    ) -> None:
        """Go on from a checkpoint.

        Args:
            weight: the layer's; overwritten.
            stored: the weight as it was stored.
            found: what `stored` returned.
            values: the values as they were stored.

        Raises:
            DeltaLensError: the checkpoint was started from another base.
        """
        touched = found.get(_TOUCHED, found[_INDICES]).to(weight.device, torch.int64)
        originals = found.get(_ORIGINALS, found[_START]).to(weight.device, weight.dtype)
        base = stored.detach().to(weight, copy=True).contiguous()
        self._put(base, touched, originals)
        own = weight.detach().clone()
        self.undo(own)
        if not torch.equal(base, own):
            raise DeltaLensError(
                f"{self.name}: the checkpoint was trained from another base: outside its trained "
                "entries its numbers are not this model's. Load the model that it was started from"
            )
        self.places = Places.of(self.places.shape, found[_INDICES].to(weight.device))
        self.start = found[_START].to(weight.device, weight.dtype)
        self.touched, self.originals = self.places, self.start
        if _TOUCHED in found:
            self.adopt(touched, originals)
        self.values.data = values.to(self.values, copy=True)
        if self.clock is not None and _CLOCK in found:
            self.clock.state = found[_CLOCK].tolist()
        with torch.no_grad():
            weight.copy_(stored)
        self._written = self.values._version


def _compact(places: Places) -> Tensor:
    """Flat indices as files have them: in four bytes each where that is enough."""
    small = places.shape[0] * places.shape[1] <= torch.iinfo(torch.int32).max
    return places.flat.to(torch.int32 if small else torch.int64)
