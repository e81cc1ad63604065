"""Which linear layers of a model are masked: by block and kind, or by name."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from deltalens.errors import DeltaLensError, fault_list
from deltalens.names import NameFilter, block_number, kind_of

__all__ = [
    "MODULES",
    "Blocks",
    "Kind",
    "Layer",
    "block_numbers",
    "choose_layers",
    "linear_layers",
]

Kind = Literal["attention", "mlp"]
MODULES: tuple[Kind, ...] = get_args(Kind)
Blocks = str | Sequence[int]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    """A linear layer that is masked."""

    name: str
    """In the model."""
    module: nn.Module
    """Has a `weight`, of two dimensions."""
    kind: Kind

    @property
    def weight_name(self) -> str:
        """The weight's name in the model."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def block(self) -> int | None:
        """The number of the block that it is in, if it is in one."""
        return block_number(self.weight_name)

    @property
    def entries(self) -> int:
        """How many the weight has."""
        return self.module.get_parameter("weight").numel()


def linear_layers(model: nn.Module) -> list[Layer]:
    """All linear layers of a model, transformers' `Conv1D` included."""
    pytorch_utils: Any = sys.modules.get("transformers.pytorch_utils")
    kinds = (nn.Linear,) if pytorch_utils is None else (nn.Linear, pytorch_utils.Conv1D)
    return [
        Layer(name, module, "attention" if kind_of(name) == "attention" else "mlp")
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]


def choose_layers(
    model: nn.Module,
    blocks: Blocks = "all",
    modules: Iterable[str] = MODULES,
    include: str | None = None,
) -> list[Layer]:
    """The linear layers to be masked.

    Args:
        model: not wrapped, not sharded, not quantized.
        blocks: `all`, numbers and ranges as text (`4-7,12`), or numbers. A block is a name up to
            its first number; where a model has several stacks, one of each.
        modules: `attention`, `mlp`, or both. Attention is what its name inside the block says it
            is (`kind_of`); every other linear layer of a block is mlp.
        include: a regular expression searched in the layers' names, instead of the two above.

    Raises:
        DeltaLensError: nothing that can be masked is chosen, or something that cannot.
    """
    _refuse_wrapped(model)
    kinds = _checked_modules(modules)
    layers = linear_layers(model)
    if include is not None:
        if blocks != "all" or kinds != set(MODULES):
            raise DeltaLensError(
                f"include={include!r} is given instead of blocks and modules: leave those out"
            )
        chosen = _included(layers, include)
    else:
        chosen = _in_blocks(model, layers, blocks, kinds)
    _refuse_unfit(model, chosen)
    return chosen


def _refuse_wrapped(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise DeltaLensError(f"{name}: mask the model before it is wrapped or compiled")
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise DeltaLensError(f"{name}: is sharded already; mask the model before fully_shard")
    if hasattr(model, "peft_config"):
        raise DeltaLensError(f"{name}: has a PEFT adapter; merge it into its base first")
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise DeltaLensError(f"{name}: is quantized; masks are for weights that are floats")


def _checked_modules(modules: Iterable[str]) -> set[str]:
    kinds = {modules} if isinstance(modules, str) else set(modules)
    if unknown := sorted(map(str, kinds - set(MODULES))):
        raise DeltaLensError(f"modules: {', '.join(unknown)}: choose of {', '.join(MODULES)}")
    if not kinds:
        raise DeltaLensError(f"modules: none given; choose of {', '.join(MODULES)}")
    return kinds


def _included(layers: Sequence[Layer], include: str) -> list[Layer]:
    choice = NameFilter(include)
    chosen = [layer for layer in layers if layer.name in choice]
    if not chosen:
        names = [layer.name for layer in layers]
        raise DeltaLensError(choice.explain_no_match(names, "linear layer"))
    return chosen


def _in_blocks(
    model: nn.Module, layers: Sequence[Layer], blocks: Blocks, kinds: set[str]
) -> list[Layer]:
    numbers = {layer.name: layer.block for layer in layers}
    there = sorted({number for number in numbers.values() if number is not None})
    if not there:
        raise DeltaLensError(
            fault_list(
                f"{type(model).__name__}: no blocks (names with a number) that have linear layers; "
                "choose layers by a regular expression over their names instead, include=...; "
                "there are:",
                [layer.name for layer in layers] or ["none"],
            )
        )
    spec = there if blocks == "all" else block_numbers(blocks)
    if missing := sorted(set(spec) - set(there)):
        raise DeltaLensError(
            f"blocks {', '.join(map(str, missing))}: {type(model).__name__} has none such; it has "
            f"{_ranges(there)}"
        )
    within = [layer for layer in layers if numbers[layer.name] in set(spec)]
    _note_fused(model, set(spec))
    chosen = [layer for layer in within if layer.kind in kinds]
    if not chosen:
        raise DeltaLensError(
            fault_list(
                f"modules={sorted(kinds)}: no such linear layer in blocks {_ranges(spec)}; "
                "choose by name with include=...; there are:",
                [layer.name for layer in within],
            )
        )
    return chosen


def block_numbers(blocks: Blocks) -> list[int]:
    """Numbers and ranges of blocks, ascending.

    Raises:
        DeltaLensError: they are none.
    """
    refused = DeltaLensError(
        f"blocks={blocks!r}: give 'all', numbers and ranges such as '4-7,12', or a list of numbers"
    )
    if not isinstance(blocks, str):
        try:
            found = list(blocks)
        except TypeError:
            raise refused from None
        if not found or not all(type(number) is int and number >= 0 for number in found):
            raise refused
        return sorted(set(found))
    numbers: set[int] = set()
    for part in blocks.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise refused
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(numbers)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, in the form that `blocks` takes."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in found)


def _note_fused(model: nn.Module, blocks: set[int]) -> None:
    """Experts fused into one tensor are no linear layers: they stay as they are."""
    fused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and block_number(name) in blocks
    ]
    if fused:
        warnings.warn(
            fault_list("not masked, as they are no linear layers (fused experts?):", fused),
            stacklevel=2,
        )


def _refuse_unfit(model: nn.Module, layers: Sequence[Layer]) -> None:
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    faults = []
    for layer in layers:
        module = layer.module
        if parametrize.is_parametrized(module):
            faults.append(f"{layer.name}: is masked, or parametrized otherwise, already")
            continue
        weight = module._parameters.get("weight")
        if weight is None or weight.dtype not in _FLOATS:
            held = "no weight" if weight is None else str(weight.dtype).removeprefix("torch.")
            faults.append(f"{layer.name}: {type(module).__name__} of {held}; quantized?")
        elif weight.is_meta:
            faults.append(f"{layer.name}: is on the meta device; load its weights first")
        elif counts[id(weight)] > 1:
            faults.append(f"{layer.name}: its weight is tied to another layer's")
    if faults:
        raise DeltaLensError(fault_list("these layers cannot be masked:", faults))
