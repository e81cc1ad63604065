"""A live model whose tensors are edited, moved, checked and restored in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from fractions import Fraction

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, fault_list
from deltalens.io.pairing import Pairing, TensorPair
from deltalens.io.reader import torch_dtype
from deltalens.numerics.bits import cast_once
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import Selection
from deltalens.numerics.sizes import SIZES
from deltalens.numerics.workers import Mapper, one_thread, serial_map, workers
from deltalens.scoring.placement import input_device
from deltalens.studies.deltas import DeltaStream, Span
from deltalens.studies.moving import Direction, Plane
from deltalens.studies.selecting import check_finite, edit_chunk
from deltalens.studies.slots import Slot, find_slots
from deltalens.studies.weights import StoredReader, StoredWeights, Weights, runs

__all__ = ["LiveModel", "LiveTensors"]


class LiveTensors:
    """The tensors of a live model that a study writes to, and their original values.

    The caller calls `restore` at the end, also after an error.

    Args:
        slots: the tensors that are written to; their copies are kept equal to them.
        origin: the original weights, by the names of the slots: files, or a copy in memory.
    """

    def __init__(self, slots: Sequence[Slot], origin: Weights) -> None:
        self.slots, self.origin = list(slots), origin
        self._plane: Plane | None = None

    def check(self, whose: str) -> None:
        """Check that the model holds the original weights, cast to its dtype, bit for bit.

        Args:
            whose: whose weights these are, such as "the origin's", for the message.

        Raises:
            DeltaLensError: lists the tensors that differ.
        """
        scratch = Scratch()

        def differs(slot: Slot) -> bool:
            live = slot.view.reshape(-1) if slot.flat is None else slot.flat
            for start, stop in runs(0, slot.size):
                stored = scratch.get("stored", live.dtype, stop - start)
                self.origin.read(slot.name, start, stored)
                if not _same_bits(stored, live[start:stop].cpu()):
                    return True
            return False

        with _threads(self.slots) as mapper:
            results = mapper(differs, self.slots)
            wrong = [slot.name for slot, bad in zip(self.slots, results, strict=True) if bad]
        for slot in self.slots:
            wrong += [copy.name for copy in slot.copies if not _same_bits(copy.view, slot.view)]
        if wrong:
            title = f"These tensors of the loaded model differ from those in {whose} files:"
            raise DeltaLensError(fault_list(title, wrong))

    def span(self, directions: Sequence[Direction], *, keep: bool = True) -> None:
        """Prepare for `move`.

        Args:
            directions: one or two.
            keep: hold the directions in memory (see `Plane`).
        """
        threads = functools.partial(_threads, self.slots)
        self._plane = Plane(self.slots, self.origin, directions, keep, threads)

    def move(self, a: float, b: float = 0.0) -> None:
        """Set the weights to origin + a d1 + b d2, whatever they were before.

        Args:
            a, b: coordinates along the directions given to `span`; on a line, b is not used.
        """
        assert self._plane is not None
        self._plane.write(a, b)
        self._write_copies()

    def restore(self, among: Container[str] | None = None) -> None:
        """Restore the original weights bit for bit, whatever they were before.

        Args:
            among: names of the slots to restore, together with their copies; None: all.
        """
        for slot in self.slots:
            if among is not None and slot.name not in among:
                continue
            if slot.flat is not None:
                self.origin.read(slot.name, 0, slot.flat)
            else:
                whole = torch.empty(slot.size, dtype=slot.view.dtype)
                self.origin.read(slot.name, 0, whole)
                slot.write(0, whole)
        self._write_copies(among)

    def _write_copies(self, among: Container[str] | None = None) -> None:
        for slot in self.slots:
            if among is None or slot.name in among:
                for copy in slot.copies:
                    copy.view.copy_(slot.view)


@contextmanager
def _threads(slots: Sequence[Slot]) -> Iterator[Mapper]:
    """Visit slots on all cores, each on a single thread, so that no sum depends on the number of
    threads."""
    if sum(slot.size for slot in slots) < SIZES.threaded:
        with one_thread():
            yield serial_map
    else:
        with workers(slots[0].view.device) as mapper:
            yield mapper


class LiveModel(LiveTensors):
    """A live model whose tensors are the fine-tune's, the base's, or the fine-tune's with some
    entries put back.

    Args:
        model: loaded from the fine-tune's folder.
        pairing: of the fine-tune and its base.

    Raises:
        DeltaLensError: tensors cannot be edited in place in the model, or do not hold the
            fine-tune's values; lists all of them.
    """

    def __init__(self, model: nn.Module, pairing: Pairing) -> None:
        self.model, self.pairing = model, pairing
        slots = _slots(model, pairing)
        self._slots = {pair.name: slots[pair.name] for pair in pairing.pairs}
        _check_apart(self._slots.values())
        super().__init__(list(self._slots.values()), StoredWeights.of(pairing.ft))
        self._stream = DeltaStream(input_device(model))
        self._base, self._scratch = StoredReader(), Scratch()
        self._put_back: Set[str] | None = frozenset()
        self.check("the fine-tune's")

    def edit(
        self, selection_of: Callable[[str], Selection], rescale: Fraction | None = None
    ) -> None:
        """Set the model to the fine-tune with the selected entries put back.

        Every entry is written from the files: nothing depends on the values before.

        Args:
            selection_of: stored name of a tensor -> the selection on its unit.
            rescale: the drop rate, to divide the remaining deltas by 1 - rate; None: do not
                rescale.

        Raises:
            DeltaLensError: a value is outside the range of the model's dtype.
        """

        def write(span: Span) -> None:
            slot = self._slots[span.pair.name]
            selection = selection_of(slot.name)
            for chunk in self._stream.chunks(span):
                if not selection.empty or rescale:
                    edit_chunk(chunk, selection, rescale, self._scratch, slot.view.dtype)
                slot.write(chunk.start, chunk.ft)

        with _threads(self.slots) as mapper:
            for _ in mapper(write, self._stream.parts(self.pairing.pairs)):
                pass
        self._write_copies()

    def put_back_all(self, among: Container[str] | None = None) -> None:
        """Set the model to the base; rows that the base lacks remain the fine-tune's.

        Args:
            among: stored names of the tensors to put back, together with their copies; None: all.

        Raises:
            DeltaLensError: a value is outside the range of the model's dtype.
        """
        for pair in self.pairing.pairs:
            if among is None or pair.name in among:
                self._fill_base(pair)
        self._write_copies(among)

    def put_back_only(self, names: Set[str]) -> None:
        """Set these tensors to the base's and all others to the fine-tune's.

        Only tensors that change are written. So all earlier changes must have been made by this
        method.

        Args:
            names: stored names.

        Raises:
            DeltaLensError: a value is outside the range of the model's dtype.
        """
        # After an error in the middle, nothing is known of any tensor.
        changed = {*self._slots} if self._put_back is None else names ^ self._put_back
        self._put_back = None
        self.put_back_all(changed & names)
        self.restore(changed - names)
        self._put_back = names

    def _fill_base(self, pair: TensorPair) -> None:
        slot, entry, dtype = self._slots[pair.name], pair.base, torch_dtype(pair.ft)
        if slot.flat is not None and dtype == torch_dtype(entry):
            self._base.read(entry, 0, slot.flat[: entry.numel])
            return
        whole = torch.empty(entry.numel, dtype=torch_dtype(entry))
        self._base.read(entry, 0, whole)
        slot.write(0, cast_once(whole, dtype))
        if dtype != whole.dtype:
            check_finite(slot.view.reshape(-1), pair, 0)


def _slots(model: nn.Module, pairing: Pairing) -> Mapping[str, Slot]:
    """Find all tensors that take part in the live model, and their copies: name -> slot."""
    names = [pair.name for pair in pairing.pairs]
    names += [copy for copy, first in pairing.copies.items() if first in set(names)]
    shapes = {name: pairing.ft.tensors[name].shape for name in names}
    slots = find_slots(model, shapes, pairing.copies)
    missing = [name for name in names if name not in slots]
    if missing:
        raise DeltaLensError(
            fault_list(
                f"{type(model).__name__} holds these tensors in a form that cannot be edited in "
                "place (leave them out with `exclude`, or use `drop`, which loads no model):",
                missing,
            )
        )
    return slots


def _check_apart(slots: Iterable[Slot]) -> None:
    """Check that no two slots share memory. If tied tensors are stored with different values, they
    can become equal in a narrower dtype, and transformers then ties them."""
    by_memory: dict[tuple[int, torch.Size], str] = {}
    for slot in slots:
        other = by_memory.setdefault((slot.view.data_ptr(), slot.view.shape), slot.name)
        if other != slot.name and slot.size:
            raise DeltaLensError(
                f"{other!r} and {slot.name!r} are stored with different values, but in "
                f"{str(slot.view.dtype).removeprefix('torch.')} transformers ties them: load the "
                "model in the `dtype` in which they are stored, or leave one out with `exclude`"
            )


def _same_bits(first: Tensor, second: Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    return first.shape == second.shape and torch.equal(
        first.contiguous().view(integer), second.contiguous().view(integer)
    )
