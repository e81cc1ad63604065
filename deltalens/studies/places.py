"""The memory of a live model that a scan writes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, several
from deltalens.io.checkpoint import Checkpoint
from deltalens.io.header import FLOATS
from deltalens.names import Choice
from deltalens.studies.live import _Places, _same_bits, _stored_views
from deltalens.studies.weights import Weights

__all__ = ["Slot", "check_holds", "passed_over", "slots_of_checkpoint", "slots_of_module"]


@dataclass(frozen=True)
class Slot:
    """A part of a parameter: what one stored tensor fills, or all of it."""

    name: str
    """The stored tensor's, or else the parameter's."""
    view: Tensor
    """The live memory."""
    parameter: nn.Parameter
    """Whose memory it is."""

    @property
    def work(self) -> torch.dtype:
        """What its points are computed in: fp32, or fp64 where the parameter is."""
        return torch.float64 if self.view.dtype == torch.float64 else torch.float32

    @property
    def size(self) -> int:
        """Entries."""
        return self.view.numel()

    def part_of(self, other: Tensor) -> Tensor:
        """The same part of another tensor that is laid out as the parameter, such as its
        gradient."""
        offset = self.view.storage_offset() - self.parameter.storage_offset()
        whole = other.contiguous()
        return whole.as_strided(self.view.shape, self.view.stride(), offset)


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
    places = _Places(_stored_views(model))
    memory = {p.untyped_storage().data_ptr(): p for _, p in _parameters(model)}
    slots: list[Slot] = []
    taken: set[tuple[int, int]] = set()
    for name, entry in checkpoint.tensors.items():
        view = places.of(name) if entry.dtype in FLOATS and name not in copies else None
        if view is None or tuple(view.shape) != entry.shape or not entry.numel:
            continue
        parameter = memory.get(view.untyped_storage().data_ptr())
        place = view.untyped_storage().data_ptr(), int(view.storage_offset())
        if parameter is None or place in taken or not view.dtype.is_floating_point:
            continue
        taken.add(place)
        slots.append(Slot(name, view.detach(), parameter))
    filled: dict[int, int] = {}
    for slot in slots:
        filled[id(slot.parameter)] = filled.get(id(slot.parameter), 0) + slot.size
    lost = [
        name
        for name, parameter in _parameters(model)
        if filled.get(id(parameter), 0) != parameter.numel() and name not in fresh
    ]
    if lost:
        raise DeltaLensError(
            several(
                f"{type(model).__name__} holds these parameters in a form that cannot be written "
                "in place from the checkpoint's tensors:",
                lost,
            )
        )
    return _chosen(slots, include, exclude)


def check_holds(slots: Sequence[Slot], origin: Weights) -> None:
    """The model holds the origin's weights, bit for bit after the cast.

    Raises:
        DeltaLensError: with the tensors that differ.
    """
    wrong = []
    for slot in slots:
        stored = torch.empty(slot.size, dtype=slot.view.dtype)
        origin.read(slot.name, 0, stored)
        if not _same_bits(stored.view(slot.view.shape), slot.view.cpu()):
            wrong.append(slot.name)
    if wrong:
        raise DeltaLensError(
            several("The loaded model does not hold what the origin's files do:", wrong)
        )


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
    choice = Choice(include, exclude)
    chosen = [slot for slot in slots if slot.name in choice]
    if not chosen:
        names = [slot.name for slot in slots]
        raise DeltaLensError(
            choice.refusal(names, "floating-point parameter")
            if slots
            else "the model has no floating-point parameter"
        )
    return chosen
