"""Where stored tensors lie in the memory of a loaded model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deltalens.errors import DeltaLensError, fault_list
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.header import FLOATS
from deltalens.names import NameFilter

__all__ = [
    "Places",
    "Slot",
    "find_slots",
    "passed_over",
    "slots_of_checkpoint",
    "slots_of_module",
]


@dataclass(frozen=True, eq=False)
class Slot:
    """A part of a live tensor: what one stored tensor fills, or all of it."""

    name: str
    """The stored tensor's, or else the parameter's."""
    view: Tensor
    """The live memory."""
    owner: Tensor
    """The model's own parameter, or buffer, whose memory it is."""
    copies: tuple[Slot, ...] = ()
    """Memory of their own in which the model holds tensors that are tied to this one."""

    @functools.cached_property
    def flat(self) -> Tensor | None:
        """The same memory in one dimension; None where the entries do not lie in their order."""
        return self.view.view(-1) if self.view.is_contiguous() else None

    @property
    def work(self) -> torch.dtype:
        """What its points are computed in: fp32, or fp64 where the parameter is."""
        return torch.float64 if self.view.dtype == torch.float64 else torch.float32

    @property
    def size(self) -> int:
        """Entries."""
        return self.view.numel()

    def write(self, start: int, values: Tensor) -> None:
        """Write entries from `start` on, rounded to the memory's dtype."""
        view, count = self.view, values.numel()
        if self.flat is not None:
            self.flat[start : start + count].copy_(values)
        elif count == view.numel():
            view.copy_(values.view(view.shape))
        else:
            where = torch.arange(start, start + count, device=view.device)
            placed = values.to(view.device, view.dtype)
            view.index_put_(torch.unravel_index(where, view.shape), placed)

    def part_of(self, other: Tensor) -> Tensor:
        """The same part of another tensor that is laid out as the owner, such as its gradient."""
        offset = self.view.storage_offset() - self.owner.storage_offset()
        whole = other.contiguous()
        return whole.as_strided(self.view.shape, self.view.stride(), offset)


def find_slots(
    model: nn.Module, shapes: Mapping[str, Sequence[int]], copies: Mapping[str, str]
) -> dict[str, Slot]:
    """What stored tensors fill in a live model.

    Names in a live model can differ from those in its file, and several stored tensors can fill
    one parameter (a mixture's experts). The mapping is transformers' own: the conversion that
    `save_pretrained` would do, run on views.

    Args:
        model: the live model.
        shapes: of the stored tensors, by name.
        copies: tensors that are stored twice: name -> the name that counts.

    Returns:
        By name, copies too; without those that have no place of this shape.
    """
    live = model.state_dict(keep_vars=True)
    owners: dict[int, Tensor] = {}
    for tensor in live.values():
        owners.setdefault(tensor.untyped_storage().data_ptr(), tensor)
    places = Places(_stored_views(model, {name: one.detach() for name, one in live.items()}))
    slots = {}
    for name, shape in shapes.items():
        view = places.of(name)
        if view is not None and tuple(view.shape) == tuple(shape):
            slots[name] = Slot(name, view, owners[view.untyped_storage().data_ptr()])
    for name, first in copies.items():
        copy, one = slots.get(name), slots.get(first)
        if copy and one and copy.view.data_ptr() != one.view.data_ptr():
            slots[first] = replace(one, copies=(*one.copies, copy))
    return slots


def slots_of_module(model: nn.Module, include: str | None, exclude: str | None) -> list[Slot]:
    """Every floating-point parameter once, however many names it has; no buffer, and nothing that
    `passed_over` names.

    Raises:
        DeltaLensError: none is left.
    """
    return _chosen(
        [Slot(name, parameter.detach(), parameter) for name, parameter in _parameters(model)],
        include,
        exclude,
    )


def slots_of_checkpoint(
    model: nn.Module,
    checkpoint: Checkpoint,
    copies: Mapping[str, str],
    fresh: Sequence[str],
    include: str | None = None,
    exclude: str | None = None,
) -> list[Slot]:
    """What each stored floating-point tensor fills in the model that was loaded from it. Buffers
    are left alone, and a tied weight is taken once.

    Args:
        model: as loaded.
        checkpoint: what it was loaded from.
        copies: tensors that are stored twice: name -> the name that counts.
        fresh: parameters that the checkpoint lacks; they stay as they are.
        include, exclude: regular expressions over stored names.

    Raises:
        DeltaLensError: a parameter whose stored tensors have no place that can be written to.
    """
    stored = {
        name: entry.shape
        for name, entry in checkpoint.tensors.items()
        if entry.dtype in FLOATS and entry.numel
    }
    moving = {parameter.untyped_storage().data_ptr() for _, parameter in _parameters(model)}
    slots: dict[tuple[int, int], Slot] = {}
    for slot in find_slots(model, stored, copies).values():
        memory = slot.view.untyped_storage().data_ptr()
        if memory in moving and slot.name not in copies:
            slots.setdefault((memory, int(slot.view.storage_offset())), slot)
    filled: dict[int, int] = {}
    for slot in (one for first in slots.values() for one in (first, *first.copies)):
        filled[id(slot.owner)] = filled.get(id(slot.owner), 0) + slot.size
    lost = [
        name
        for name, parameter in _parameters(model)
        if filled.get(id(parameter), 0) != parameter.numel() and name not in fresh
    ]
    if lost:
        raise DeltaLensError(
            fault_list(
                f"{type(model).__name__} holds these parameters in a form that cannot be written "
                "in place from the checkpoint's tensors:",
                lost,
            )
        )
    return _chosen(list(slots.values()), include, exclude)


def passed_over(model: nn.Module) -> list[str]:
    """The parameters that no scan moves, each with the reason."""
    return [
        f"{name} ({reason})"
        for name, parameter in model.named_parameters()
        if (reason := _why_not(parameter))
    ]


def _why_not(parameter: nn.Parameter) -> str:
    if parameter.layout != torch.strided:
        return str(parameter.layout).removeprefix("torch.")
    if not parameter.dtype.is_floating_point:
        return str(parameter.dtype).removeprefix("torch.")
    return "" if parameter.numel() else "no entries"


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each piece of memory once."""
    seen: set[tuple[int, int]] = set()
    for name, parameter in model.named_parameters():
        if _why_not(parameter):
            continue
        place = parameter.untyped_storage().data_ptr(), int(parameter.storage_offset())
        if place not in seen:
            seen.add(place)
            yield name, parameter


def _chosen(slots: list[Slot], include: str | None, exclude: str | None) -> list[Slot]:
    choice = NameFilter(include, exclude)
    chosen = [slot for slot in slots if slot.name in choice]
    if not chosen:
        names = [slot.name for slot in slots]
        raise DeltaLensError(
            choice.explain_no_match(names, "floating-point parameter")
            if slots
            else "the model has no floating-point parameter"
        )
    return chosen


class _NoCopies(TorchFunctionMode):
    """Lets transformers' conversions return views where they would make copies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.contiguous:
            return args[0]
        return func(*args, **(kwargs or {}))


def _stored_views(model: nn.Module, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors, under the names of its checkpoint too, as views of its own memory."""
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


class Places:
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
