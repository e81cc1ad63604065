"""The memory of a loaded model that each stored tensor fills."""

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
from deltalens.studies.offloaded import live_tensors

__all__ = [
    "Slot",
    "TensorLookup",
    "find_slots",
    "fixed_parameters",
    "slots_of_checkpoint",
    "slots_of_module",
]


@dataclass(frozen=True, eq=False)
class Slot:
    """The part of a parameter or buffer that one stored tensor fills; or a whole parameter."""

    name: str
    """Name of the stored tensor; without a file, of the parameter."""
    view: Tensor
    """The live memory."""
    owner: Tensor
    """The model's parameter or buffer that contains the memory."""
    copies: tuple[Slot, ...] = ()
    """Slots in separate memory that must hold the same values, as the tensors are tied."""

    @functools.cached_property
    def flat(self) -> Tensor | None:
        """The same memory, 1-D; None if the entries are not contiguous."""
        return self.view.view(-1) if self.view.is_contiguous() else None

    @property
    def work(self) -> torch.dtype:
        """The dtype for computations: fp64 if the parameter is fp64, else fp32."""
        return torch.float64 if self.view.dtype == torch.float64 else torch.float32

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.view.numel()

    def write(self, start: int, values: Tensor) -> None:
        """Write consecutive entries, rounded to the memory's dtype.

        Args:
            start: flat index of the first entry.
            values: 1-D, of any float dtype and device.
        """
        view, count = self.view, values.numel()
        if self.flat is not None:
            self.flat[start : start + count].copy_(values)
        elif count == view.numel():
            view.copy_(values.view(view.shape))
        else:
            indices = torch.arange(start, start + count, device=view.device)
            rounded = values.to(view.device, view.dtype)
            view.index_put_(torch.unravel_index(indices, view.shape), rounded)

    def part_of(self, other: Tensor) -> Tensor:
        """Select the same part of another tensor.

        Args:
            other: a tensor with the shape of the owner, such as its gradient.

        Returns:
            The part, with the shape of `view`; of a contiguous tensor, a view of its memory.
        """
        offset = self.view.storage_offset() - self.owner.storage_offset()
        whole = other.contiguous()
        return whole.as_strided(self.view.shape, self.view.stride(), offset)


def find_slots(
    model: nn.Module,
    shapes: Mapping[str, Sequence[int]],
    copies: Mapping[str, str],
    live: Mapping[str, Tensor] | None = None,
) -> dict[str, Slot]:
    """Find the memory of a live model that stored tensors fill.

    Names in a live model can differ from those in its file, and several stored tensors can fill one
    parameter (the experts of a mixture). The mapping is that of transformers: the conversion by
    `save_pretrained`, applied to views.

    Args:
        model: the live model.
        shapes: stored name -> shape.
        copies: names of tensors that are stored twice -> the name of the stored original.
        live: what `live_tensors` has returned for the model; None: it is called.

    Returns:
        Stored name -> slot, including copies. A tensor without memory of its shape is left out.
    """
    live = live_tensors(model) if live is None else live
    owners: dict[int, Tensor] = {}
    for tensor in live.values():
        owners.setdefault(tensor.untyped_storage().data_ptr(), tensor)
    lookup = TensorLookup(
        _stored_views(model, {name: tensor.detach() for name, tensor in live.items()})
    )
    slots = {}
    for name, shape in shapes.items():
        view = lookup.find(name)
        if view is not None and tuple(view.shape) == tuple(shape):
            slots[name] = Slot(name, view, owners[view.untyped_storage().data_ptr()])
    for name, original in copies.items():
        copy, slot = slots.get(name), slots.get(original)
        if copy and slot and copy.view.data_ptr() != slot.view.data_ptr():
            slots[original] = replace(slot, copies=(*slot.copies, copy))
    return slots


def slots_of_module(model: nn.Module, include: str | None, exclude: str | None) -> list[Slot]:
    """List every floating-point parameter of a model in memory.

    Args:
        model: the live model.
        include, exclude: regular expressions over parameter names.

    Returns:
        One slot per parameter, however many names it has; without buffers, and without the
        parameters of `fixed_parameters`.

    Raises:
        DeltaLensError: no parameter is left.
    """
    return _selected(
        [
            Slot(name, memory.detach(), memory)
            for name, memory in _parameters(model, live_tensors(model))
        ],
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
    """List the memory that the stored floating-point tensors of a checkpoint fill in its model.

    Args:
        model: as loaded from the checkpoint.
        checkpoint: the stored tensors.
        copies: names of tensors that are stored twice -> the name of the stored original.
        fresh: names of parameters that the checkpoint lacks; they are left out.
        include, exclude: regular expressions over stored names.

    Returns:
        The slots; without buffers, and with a single slot for tied weights.

    Raises:
        DeltaLensError: parameters cannot be written in place from their stored tensors; or no
            tensor is left.
    """
    stored = {
        name: entry.shape
        for name, entry in checkpoint.tensors.items()
        if entry.dtype in FLOATS and entry.numel
    }
    live = live_tensors(model)
    parameters = dict(_parameters(model, live))
    movable = {parameter.untyped_storage().data_ptr() for parameter in parameters.values()}
    slots: dict[tuple[int, int], Slot] = {}
    for slot in find_slots(model, stored, copies, live).values():
        memory = slot.view.untyped_storage().data_ptr()
        if memory in movable and slot.name not in copies:
            slots.setdefault((memory, int(slot.view.storage_offset())), slot)
    filled: dict[int, int] = {}
    for original in slots.values():
        for slot in (original, *original.copies):
            filled[id(slot.owner)] = filled.get(id(slot.owner), 0) + slot.size
    incomplete = [
        name
        for name, parameter in parameters.items()
        if filled.get(id(parameter), 0) != parameter.numel() and name not in fresh
    ]
    if incomplete:
        raise DeltaLensError(
            fault_list(
                f"{type(model).__name__} holds these parameters in a form that cannot be written "
                "in place from the checkpoint's tensors:",
                incomplete,
            )
        )
    return _selected(list(slots.values()), include, exclude)


def fixed_parameters(model: nn.Module) -> list[str]:
    """List the parameters that a scan cannot move.

    Args:
        model: the live model.

    Returns:
        "NAME (REASON)" of each.
    """
    return [
        f"{name} ({reason})"
        for name, parameter in model.named_parameters()
        if (reason := _fixed_reason(parameter))
    ]


def _fixed_reason(parameter: nn.Parameter) -> str:
    """Why a parameter cannot be moved; "" if it can."""
    if parameter.layout != torch.strided:
        return str(parameter.layout).removeprefix("torch.")
    if not parameter.dtype.is_floating_point:
        return str(parameter.dtype).removeprefix("torch.")
    return "" if parameter.numel() else "no entries"


def _parameters(model: nn.Module, live: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The memory of the parameters that can be moved, tied ones once."""
    seen: set[tuple[int, int]] = set()
    for name, parameter in model.named_parameters():
        if _fixed_reason(parameter):
            continue
        tensor = live.get(name, parameter)
        memory = tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
        if memory not in seen:
            seen.add(memory)
            yield name, tensor


def _selected(slots: list[Slot], include: str | None, exclude: str | None) -> list[Slot]:
    names = NameFilter(include, exclude)
    selected = [slot for slot in slots if slot.name in names]
    if not selected:
        raise DeltaLensError(
            names.explain_no_match([slot.name for slot in slots], "floating-point parameter")
            if slots
            else "the model has no floating-point parameter"
        )
    return selected


class _NoCopies(TorchFunctionMode):
    """Makes transformers' conversions return views instead of copies."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.contiguous:
            return args[0]
        return func(*args, **(kwargs or {}))


def _stored_views(model: nn.Module, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of the model's memory, under the names of the model and those of its checkpoint."""
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


class TensorLookup:
    """Finds a model's tensors by stored names, which can differ by a prefix.

    Args:
        tensors: the model's tensors by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._longest = max(map(len, tensors), default=0)

    def find(self, name: str) -> Tensor | None:
        """Find a tensor by its own name, or else by the part of a name after a dot.

        Args:
            name: a stored name.

        Returns:
            The tensor of this name; or the only one whose name ends in it, or in whose name it
            ends; None if there is no such tensor, or several.
        """
        if name in self._tensors:
            return self._tensors[name]
        matches = [*self._by_suffix.get(name, ()), *self._suffixes_of(name)]
        return self._tensors[matches[0]] if len(matches) == 1 else None

    @functools.cached_property
    def _by_suffix(self) -> dict[str, list[str]]:
        """Part of a name after a dot -> the names that end in it."""
        by_suffix: dict[str, list[str]] = {}
        for name in self._tensors:
            parts = name.split(".")
            for start in range(1, len(parts)):
                by_suffix.setdefault(".".join(parts[start:]), []).append(name)
        return by_suffix

    def _suffixes_of(self, name: str) -> Iterator[str]:
        """Names of tensors that are the part of `name` after a dot. Parts longer than every name
        are skipped."""
        dot = name.find(".", max(0, len(name) - self._longest - 1))
        while dot >= 0:
            if name[dot + 1 :] in self._tensors:
                yield name[dot + 1 :]
            dot = name.find(".", dot + 1)
