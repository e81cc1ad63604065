"""How much a fine-tune changed each weight that a model's salience is measured of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, fault_list
from deltalens.io.header import TensorEntry
from deltalens.io.pairing import Pairing
from deltalens.methods.mask_layers import Layer
from deltalens.studies.slots import find_slots
from deltalens.studies.weights import StoredReader

__all__ = ["changes_of"]


def changes_of(pairing: Pairing, model: nn.Module, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Read |delta| of the weights of some layers.

    Args:
        pairing: of the fine-tune, and of the model's checkpoint as its base.
        model: as loaded from that checkpoint.
        layers: layers of the model.

    Returns:
        Weight name -> |delta|: fp32, 1-D, on the CPU.

    Raises:
        DeltaLensError: the fine-tune lacks one of the weights.
    """
    weights = {layer.weight_name: layer.module.get_parameter("weight") for layer in layers}
    names = {id(weight): name for name, weight in weights.items()}
    slots = find_slots(model, {pair.name: pair.ft.shape for pair in pairing.pairs}, {})
    changes = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    missing, reader = {name: weight.numel() for name, weight in weights.items()}, StoredReader()
    for pair in pairing.pairs:
        slot = slots.get(pair.name)
        if slot is None or id(slot.owner) not in names:
            continue
        name = names[id(slot.owner)]
        delta = _read(reader, pair.ft).sub_(_read(reader, pair.base)).abs_()
        slot.part_of(changes[name]).copy_(delta.view(slot.view.shape))
        missing[name] -= delta.numel()
    if lacking := [name for name, left in missing.items() if left]:
        raise DeltaLensError(
            fault_list(f"{pairing.ft.path}: the fine-tune has no such weights:", lacking)
        )
    return {name: change.view(-1) for name, change in changes.items()}


def _read(reader: StoredReader, entry: TensorEntry) -> Tensor:
    values = torch.empty(entry.numel)
    reader.read(entry, 0, values)
    return values
