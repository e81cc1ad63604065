"""Choose the linear layers whose weights are masked: by block and kind, or by name."""

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
    "refuse_unfit",
    "refuse_wrapped",
    "warn_of_fused",
]

Kind = Literal["attention", "mlp"]
"""The two kinds of linear layers in a block."""
MODULES: tuple[Kind, ...] = get_args(Kind)
"""Both kinds, in the order in which messages list them."""
Blocks = str | Sequence[int]
"""Block numbers, as a sequence or as text: `all`, `4-7,12`."""

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layer:
    """A linear layer whose weight is masked."""

    name: str
    """Its name in the model."""
    module: nn.Module
    """The module; it has a two-dimensional parameter `weight`."""
    kind: Kind

    @property
    def weight_name(self) -> str:
        """The weight's parameter name in the model."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def block(self) -> int | None:
        """The number of the layer's block; None outside the blocks."""
        return block_number(self.weight_name)

    @property
    def entries(self) -> int:
        """The number of entries of the weight."""
        return self.module.get_parameter("weight").numel()


def linear_layers(model: nn.Module) -> list[Layer]:
    """List all linear layers of a model, including transformers' `Conv1D`.

    Args:
        model: any model.

    Returns:
        The layers in the order of the model.
    """
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
    """Choose the linear layers to mask.

    Args:
        model: the model; not wrapped, not sharded, not quantized.
        blocks: `all`, numbers and ranges as text (`4-7,12`), or a sequence of numbers. A block is a
            name up to its first number; in a model with several stacks, a number means one block of
            each.
        modules: `attention`, `mlp`, or both. Attention is what its name inside the block says
            (`kind_of`); every other linear layer of a block counts as mlp.
        include: a regular expression that layer names must match; it replaces `blocks` and
            `modules`.

    Returns:
        The chosen layers in the order of the model.

    Raises:
        DeltaLensError: the arguments choose no layer, or choose one that cannot be masked.
    """
    refuse_wrapped(model, "mask")
    kinds = _checked_modules(modules)
    layers = linear_layers(model)
    if include is not None:
        if blocks != "all" or kinds != set(MODULES):
            raise DeltaLensError(
                f"include={include!r} replaces blocks and modules: leave those out"
            )
        chosen = _included(layers, include)
    else:
        chosen = _in_blocks(model, layers, blocks, kinds)
    refuse_unfit(model, chosen, "mask")
    return chosen


def refuse_wrapped(model: nn.Module, action: str) -> None:
    """Refuse a model whose weights are not plain tensors of its own.

    Args:
        model: the model.
        action: what is done to its weights, for the message: `mask` or `adapt`.

    Raises:
        DeltaLensError: the model is wrapped, compiled, sharded, adapted or quantized.
    """
    name = type(model).__name__
    if isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise DeltaLensError(f"{name} is wrapped or compiled already: {action} it before that")
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise DeltaLensError(f"{name} is sharded already: {action} it before fully_shard")
    if hasattr(model, "peft_config"):
        raise DeltaLensError(f"{name} has a PEFT adapter: merge it into its base first")
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise DeltaLensError(f"{name} is quantized: only floating-point weights can be {action}ed")


def _checked_modules(modules: Iterable[str]) -> set[str]:
    kinds = {modules} if isinstance(modules, str) else set(modules)
    if unknown := sorted(map(str, kinds - set(MODULES))):
        raise DeltaLensError(f"modules: {', '.join(unknown)}: choose from {', '.join(MODULES)}")
    if not kinds:
        raise DeltaLensError(f"modules: none given; choose from {', '.join(MODULES)}")
    return kinds


def _included(layers: Sequence[Layer], include: str) -> list[Layer]:
    names_filter = NameFilter(include)
    chosen = [layer for layer in layers if layer.name in names_filter]
    if not chosen:
        names = [layer.name for layer in layers]
        raise DeltaLensError(names_filter.explain_no_match(names, "linear layer"))
    return chosen


def _in_blocks(
    model: nn.Module, layers: Sequence[Layer], blocks: Blocks, kinds: set[str]
) -> list[Layer]:
    numbers = {layer.name: layer.block for layer in layers}
    existing = sorted({number for number in numbers.values() if number is not None})
    if not existing:
        raise DeltaLensError(
            fault_list(
                f"{type(model).__name__} has no linear layer in a block (a name with a number); "
                "choose by a regular expression with include instead; the linear layers are:",
                [layer.name for layer in layers] or ["none"],
            )
        )
    wanted = existing if blocks == "all" else block_numbers(blocks)
    if missing := sorted(set(wanted) - set(existing)):
        raise DeltaLensError(
            f"blocks {', '.join(map(str, missing))}: {type(model).__name__} has only "
            f"blocks {_ranges(existing)}"
        )
    within = [layer for layer in layers if numbers[layer.name] in set(wanted)]
    warn_of_fused(model, set(wanted), "mask")
    chosen = [layer for layer in within if layer.kind in kinds]
    if not chosen:
        raise DeltaLensError(
            fault_list(
                f"modules={sorted(kinds)}: no such linear layer in blocks {_ranges(wanted)}; "
                "choose layers by name with include; the linear layers are:",
                [layer.name for layer in within],
            )
        )
    return chosen


def block_numbers(blocks: Blocks) -> list[int]:
    """Parse block numbers.

    Args:
        blocks: numbers and ranges as text (`4-7,12`), or a sequence of numbers.

    Returns:
        The distinct numbers, ascending.

    Raises:
        DeltaLensError: the text or sequence is malformed.
    """
    malformed = DeltaLensError(
        f"blocks={blocks!r}: give 'all', numbers and ranges such as '4-7,12', or a list of numbers"
    )
    if not isinstance(blocks, str):
        try:
            given = list(blocks)
        except TypeError:
            raise malformed from None
        if not given or not all(type(number) is int and number >= 0 for number in given):
            raise malformed
        return sorted(set(given))
    numbers: set[int] = set()
    for part in blocks.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise malformed
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(numbers)


def _ranges(numbers: Sequence[int]) -> str:
    """Format ascending numbers as text, in the form that `blocks` takes."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}-{b}" if b > a else str(a) for a, b in spans)


def warn_of_fused(model: nn.Module, blocks: set[int], action: str) -> None:
    """Warn of experts that are fused into one tensor: they are no linear layers and are left out.

    Args:
        model: the model.
        blocks: the numbers of the blocks whose layers are chosen.
        action: as in `refuse_wrapped`.
    """
    fused = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and block_number(name) in blocks
    ]
    if fused:
        warnings.warn(
            fault_list(
                f"not {action}ed, because they are not linear layers (fused experts?):", fused
            ),
            stacklevel=2,
        )


def refuse_unfit(model: nn.Module, layers: Sequence[Layer], action: str) -> None:
    """Refuse layers whose weights cannot be masked or adapted.

    Args:
        model: the model.
        layers: layers of it.
        action: as in `refuse_wrapped`.

    Raises:
        DeltaLensError: a weight is parametrized, tied, quantized, or on the meta device.
    """
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    faults = []
    for layer in layers:
        module = layer.module
        if parametrize.is_parametrized(module):
            faults.append(f"{layer.name}: is masked already, or parametrized in another way")
            continue
        weight = module._parameters.get("weight")
        if weight is None or weight.dtype not in _FLOATS:
            content = "no weight" if weight is None else str(weight.dtype).removeprefix("torch.")
            faults.append(f"{layer.name}: {type(module).__name__} of {content}; is it quantized?")
        elif weight.is_meta:
            faults.append(f"{layer.name}: is on the meta device; load its weights first")
        elif counts[id(weight)] > 1:
            faults.append(f"{layer.name}: its weight is tied to another layer's")
    if faults:
        raise DeltaLensError(fault_list(f"these layers cannot be {action}ed:", faults))
