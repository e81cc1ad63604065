"""A live model whose tensors are viewed, edited, moved, checked and restored in place."""

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
from deltalens.studies.deltas import DeltaStream, Span
from deltalens.studies.moving import Direction, Plane
from deltalens.studies.places import Slot, find_slots
from deltalens.studies.selecting import check_finite, edit_chunk
from deltalens.studies.weights import StoredReader, StoredWeights, Weights, runs

__all__ = ["LiveModel", "LiveTensors"]


class LiveTensors:
    """The tensors of a live model that a study writes to, and what gives them their bits back.

    Whoever holds one calls `restore` at the end, however the work ends.

    Args:
        slots: what is written to; their copies follow.
        origin: the weights that the model holds, by the slots' names: files, or a copy in memory.
    """

    def __init__(self, slots: Sequence[Slot], origin: Weights) -> None:
        self.slots, self.origin = list(slots), origin
        self._plane: Plane | None = None

    def check(self, whose: str) -> None:
        """The model holds the origin's weights, bit for bit after the cast.

        Args:
            whose: whose weights those are, for the message.

        Raises:
            DeltaLensError: with the tensors that differ.
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
            found = mapper(differs, self.slots)
            wrong = [slot.name for slot, bad in zip(self.slots, found, strict=True) if bad]
        for slot in self.slots:
            wrong += [one.name for one in slot.copies if not _same_bits(one.view, slot.view)]
        if wrong:
            title = f"The loaded model does not hold what {whose} files do:"
            raise DeltaLensError(fault_list(title, wrong))

    def span(self, directions: Sequence[Direction], *, keep: bool = True) -> None:
        """Make ready for `move` along one or two directions; see `Plane`."""
        threads = functools.partial(_threads, self.slots)
        self._plane = Plane(self.slots, self.origin, directions, keep, threads)

    def move(self, a: float, b: float = 0.0) -> None:
        """Put the model on origin + a d1 + b d2, wherever it was before: see `span`."""
        assert self._plane is not None
        self._plane.write(a, b)
        self._write_copies()

    def restore(self, among: Container[str] | None = None) -> None:
        """Give the model the origin's bits back, whatever was done to it.

        Args:
            among: names of slots; only these, and what is a copy of them. None: all.
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
    """On all cores; always on one thread each, so that no sum depends on their number."""
    if sum(slot.size for slot in slots) < SIZES.threaded:
        with one_thread():
            yield serial_map
    else:
        with workers(slots[0].view.device) as mapper:
            yield mapper


class LiveModel(LiveTensors):
    """A live model of a pair: each stored tensor that takes part is the fine-tune's, or the base's,
    or has some entries put back.

    Args:
        model: loaded from the fine-tune's folder.
        pairing: of the fine-tune and its base.

    Raises:
        DeltaLensError: a tensor has no place in the model that can be edited, or the model does
            not hold the fine-tune's values; all such tensors are named.
    """

    def __init__(self, model: nn.Module, pairing: Pairing) -> None:
        self.model, self.pairing = model, pairing
        found = _slots(model, pairing)
        self._slots = {pair.name: found[pair.name] for pair in pairing.pairs}
        _check_apart(self._slots.values())
        super().__init__(list(self._slots.values()), StoredWeights.of(pairing.ft))
        self._stream = DeltaStream(next(model.parameters()).device)
        self._base, self._scratch = StoredReader(), Scratch()
        self._put_back: Set[str] = frozenset()
        self.check("the fine-tune's")

    def edit(
        self, selection_of: Callable[[str], Selection], rescale: Fraction | None = None
    ) -> None:
        """Make the model the fine-tune with each tensor's selected entries put back.

        Every entry is written anew from the files: nothing depends on what was there before.

        Args:
            selection_of: from a stored name to the selection of the tensor's unit.
            rescale: the drop rate, if what is kept is to be divided by 1 - rate.
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
        """Make the model the base; rows that the base lacks stay the fine-tune's.

        Args:
            among: stored names; only these pairs, and what is stored as a copy of them. None: all.
        """
        for pair in self.pairing.pairs:
            if among is None or pair.name in among:
                self._fill_base(pair)
        self._write_copies(among)

    def put_back_only(self, wanted: Set[str]) -> None:
        """Make these pairs the base's and all others the fine-tune's, where every change before was
        made by this: what is so already is not written again.

        Args:
            wanted: stored names.
        """
        changed = wanted ^ self._put_back
        self.put_back_all(changed & wanted)
        self.restore(changed - wanted)
        self._put_back = wanted

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
    names = [pair.name for pair in pairing.pairs]
    names += [copy for copy, first in pairing.copies.items() if first in set(names)]
    shapes = {name: pairing.ft.tensors[name].shape for name in names}
    found = find_slots(model, shapes, pairing.copies)
    lost = [name for name in names if name not in found]
    if lost:
        raise DeltaLensError(
            fault_list(
                f"{type(model).__name__} holds these tensors in a form that cannot be edited in "
                "place (leave them out with --exclude, or use `drop`, which needs no model):",
                lost,
            )
        )
    return found


def _check_apart(slots: Iterable[Slot]) -> None:
    """What counts as two tensors is two in the model: loaded in a narrower dtype, a stored copy of
    a tied tensor can become equal to it, and transformers then ties them."""
    places: dict[tuple[int, torch.Size], str] = {}
    for slot in slots:
        other = places.setdefault((slot.view.data_ptr(), slot.view.shape), slot.name)
        if other != slot.name and slot.size:
            raise DeltaLensError(
                f"{other!r} and {slot.name!r} are stored with different values, and in "
                f"{str(slot.view.dtype).removeprefix('torch.')} transformers ties them: load in "
                "the dtype they are stored in (--dtype), or leave one out with --exclude"
            )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(integer), other.contiguous().view(integer)
    )
