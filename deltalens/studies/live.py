"""A live model whose tensors are edited in place, straight from the two checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltalens.errors import DeltaLensError, several
from deltalens.io.header import TensorEntry
from deltalens.io.pairing import Pairing
from deltalens.io.reader import TensorReader, torch_dtype
from deltalens.numerics.bits import cast_once
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection.prefix import Selection
from deltalens.numerics.workers import Each, in_order, workers
from deltalens.studies.deltas import DeltaStream, Span
from deltalens.studies.selecting import check_finite, edit_chunk

__all__ = ["LiveModel"]

_FEWEST = 1 << 22
"""Below so many entries one thread is as quick as several that have to be started."""


class LiveModel:
    """Maps every stored tensor that takes part to the memory it fills in a loaded model.

    Names in a live model can differ from those in its file, and several stored tensors can fill
    one parameter (a mixture's experts). The mapping is transformers' own: the conversion that
    `save_pretrained` would do, run on views.

    Args:
        model: loaded from the fine-tune's folder.
        pairing: of the fine-tune and its base.

    Raises:
        DeltaLensError: a tensor has no place in the model that can be edited, or the model does
            not hold the fine-tune's values; all such tensors are named.
    """

    def __init__(self, model: nn.Module, pairing: Pairing) -> None:
        self.model, self.pairing = model, pairing
        device = next(model.parameters()).device
        self._stream, self._scratch = DeltaStream(device), Scratch()
        self._views = _views(model, pairing)
        self._check_apart()
        self._check()

    def _check_apart(self) -> None:
        """What counts as two tensors is two in the model: loaded in a narrower dtype, a stored copy
        of a tied tensor can become equal to it, and transformers then ties them."""
        places: dict[tuple[int, torch.Size], str] = {}
        for pair in self.pairing.pairs:
            view = self._views[pair.name]
            other = places.setdefault((view.data_ptr(), view.shape), pair.name)
            if other != pair.name and view.numel():
                raise DeltaLensError(
                    f"{other!r} and {pair.name!r} are stored with different values, and in "
                    f"{str(view.dtype).removeprefix('torch.')} transformers ties them: load in the "
                    "dtype they are stored in (--dtype), or leave one out with --exclude"
                )

    def _check(self) -> None:
        """Every mapped tensor is the fine-tune's, bit for bit after the cast."""
        reader = TensorReader()
        wrong = []
        for name, view in self._views.items():
            # A copy that the model does not share can differ from it in the sign of a zero.
            entry = self.pairing.ft.tensors[self.pairing.copies.get(name, name)]
            stored = _read(entry, reader).view(entry.shape)
            if not _same_bits(stored.to(view.dtype), view.cpu()):
                wrong.append(name)
        if wrong:
            raise DeltaLensError(
                several("The loaded model does not hold what the fine-tune's files do:", wrong)
            )

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
            name = span.pair.name
            selection = selection_of(name)
            for chunk in self._stream.chunks(span):
                if not selection.empty or rescale:
                    edit_chunk(chunk, selection, rescale, self._scratch, self._views[name].dtype)
                self._write(name, chunk.start, chunk.ft)

        spans = self._stream.parts(self.pairing.pairs)
        small = self.pairing.entries < _FEWEST
        pool: AbstractContextManager[Each] = (
            nullcontext(in_order) if small else workers(self._stream.device)
        )
        with pool as each:
            for _ in each(write, spans):
                pass
        self._write_copies()

    def put_back_all(self, among: Container[str] | None = None) -> None:
        """Make the model the base; rows that the base lacks stay the fine-tune's.

        Args:
            among: stored names; only these pairs, and what is stored as a copy of them. None: all.
        """
        reader = TensorReader()
        for pair in self.pairing.pairs:
            if among is None or pair.name in among:
                self._fill(pair.name, pair.base, reader)
                if pair.ft.dtype != pair.base.dtype:
                    check_finite(self._views[pair.name].reshape(-1), pair, 0)
        self._write_copies(among)

    def restore(self, among: Container[str] | None = None) -> None:
        """Give the model the fine-tune's bits back; `among` as in `put_back_all`."""
        reader = TensorReader()
        for name in self._views:
            if among is None or self.pairing.copies.get(name, name) in among:
                self._fill(name, self.pairing.ft.tensors[name], reader)

    def _fill(self, name: str, entry: TensorEntry, reader: TensorReader) -> None:
        """Write a stored tensor, or its first rows; where nothing has to be cast, the file is read
        straight into the model."""
        view, dtype = self._views[name], torch_dtype(self.pairing.ft.tensors[name])
        if view.is_contiguous() and view.is_cpu and view.dtype == dtype == torch_dtype(entry):
            reader.read(entry, 0, view.view(-1)[: entry.numel])
        else:
            self._write(name, 0, cast_once(_read(entry, reader), dtype))

    def _write(self, name: str, start: int, values: Tensor) -> None:
        view, count = self._views[name], values.numel()
        if count == view.numel():
            view.copy_(values.view(view.shape))
        elif view.is_contiguous():
            view.view(-1)[start : start + count].copy_(values)
        else:
            where = torch.arange(start, start + count, device=view.device)
            view.index_put_(torch.unravel_index(where, view.shape), values.to(view.dtype))

    def _write_copies(self, among: Container[str] | None = None) -> None:
        for copy, first in self.pairing.copies.items():
            if among is None or first in among:
                self._views[copy].copy_(self._views[first])


def _read(entry: TensorEntry, reader: TensorReader) -> Tensor:
    out = torch.empty(entry.numel, dtype=torch_dtype(entry))
    reader.read(entry, 0, out)
    return out


def _same_bits(one: Tensor, other: Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(integer), other.contiguous().view(integer)
    )


class _NoCopies(TorchFunctionMode):
    """Lets transformers' conversions return views where they would make copies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.contiguous:
            return args[0]
        return func(*args, **(kwargs or {}))


def _views(model: nn.Module, pairing: Pairing) -> dict[str, Tensor]:
    wanted = [pair.name for pair in pairing.pairs] + list(pairing.copies)
    stored = _stored_views(model)
    places = _Places(stored)
    views, lost = {}, []
    for name in wanted:
        view = places.of(name)
        if view is None or tuple(view.shape) != pairing.ft.tensors[name].shape:
            lost.append(name)
        else:
            views[name] = view
    if lost:
        raise DeltaLensError(
            several(
                f"{type(model).__name__} holds these tensors in a form that cannot be edited in "
                "place (leave them out with --exclude, or use `drop`, which needs no model):",
                lost,
            )
        )
    return views


def _stored_views(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors under the names of its checkpoint, as views of its own memory."""
    live = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    memory = {tensor.untyped_storage().data_ptr() for tensor in live.values()}
    try:
        from transformers.core_model_loading import revert_weight_conversion

        with _NoCopies():
            stored: Mapping[str, Tensor] = revert_weight_conversion(model, dict(live))  # type: ignore[arg-type]
    except (ImportError, ValueError, KeyError, RuntimeError, AttributeError):
        stored = live
    return {
        name: tensor
        for name, tensor in {**live, **stored}.items()
        if tensor.untyped_storage().data_ptr() in memory
    }


class _Places:
    """Finds a model's tensors by stored names, which can differ by a prefix."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored = stored
        self._longest = max(map(len, stored), default=0)

    def of(self, name: str) -> Tensor | None:
        """The tensor of this name, or else the only one whose name ends in it or that it ends in;
        None where there is none, or are several."""
        if name in self._stored:
            return self._stored[name]
        close = [*self._ending_in.get(name, ()), *self._ends(name)]
        return self._stored[close[0]] if len(close) == 1 else None

    @functools.cached_property
    def _ending_in(self) -> dict[str, list[str]]:
        """Ends of names, after a dot -> the names."""
        found: dict[str, list[str]] = {}
        for name in self._stored:
            parts = name.split(".")
            for start in range(1, len(parts)):
                found.setdefault(".".join(parts[start:]), []).append(name)
        return found

    def _ends(self, name: str) -> Iterator[str]:
        """Names that this one ends in, after a dot; no piece is looked up that is longer than all
        of them."""
        at = name.find(".", max(0, len(name) - self._longest - 1))
        while at >= 0:
            if name[at + 1 :] in self._stored:
                yield name[at + 1 :]
            at = name.find(".", at + 1)
