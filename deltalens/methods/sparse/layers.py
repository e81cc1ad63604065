"""Linear layers of which chosen entries are trained, and nothing else.

The weight itself carries base + values, so that the forward pass is the plain linear layer's. In
the backward pass only the products at the chosen entries are computed. A state dict holds the
current weight under its usual name, so that plain transformers loads any checkpoint; what is needed
to go on, and to give the base back, lies beside it.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deltalens.errors import DeltaLensError
from deltalens.gradients.parameters import TRAINED_VALUES
from deltalens.methods.mask_layers import Layer
from deltalens.methods.sparse.entries import NEEDED, STORED, TrainedEntries
from deltalens.numerics.sampled import TurnedColumns, sampled_product, take_columns

__all__ = ["adapt_layer", "is_adapted", "restore_layer", "rows_are_inputs"]


class _SampledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, layer: Any
    ) -> Tensor:
        output: Tensor = layer.plain_forward(inputs)
        ctx.entries, ctx.places = layer.sparse_entries, layer.sparse_entries.places
        ctx.shape, ctx.dtype = inputs.shape, inputs.dtype
        # Under autocast the input is kept as the product saw it.
        read = inputs.reshape(-1, inputs.shape[-1]).to(output.dtype)
        columns = layer.sparse_entries.columns_to_keep
        if columns is not None and not torch.compiler.is_compiling():
            read = take_columns(read, columns)
        ctx.save_for_backward(read, weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        read, weight = ctx.saved_tensors
        entries: TrainedEntries = ctx.entries
        into_input = into_bias = into_values = None
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[3]:
            sides = [(rows, None), (read, entries.read)]
            (left, of_left), (right, of_right) = sides[::-1] if entries.rows_are_inputs else sides
            into_values = sampled_product(left, right, ctx.places, (of_left, of_right))
        if ctx.needs_input_grad[0]:
            matrix = weight.to(gradient.dtype)
            matrix = matrix.t() if entries.rows_are_inputs else matrix
            into_input = (rows @ matrix).view(ctx.shape).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            into_bias = rows.sum(0)
        return into_input, None, into_bias, into_values, None


class _Sampled(nn.Module):
    """Mixed into the class of a linear layer."""

    sparse_entries: TrainedEntries

    def plain_forward(self, inputs: Tensor) -> Tensor:
        """The layer as it is without us.

        Args:
            inputs: as of the layer.

        Returns:
            Its output.
        """
        output: Tensor = super().forward(inputs)
        return output

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """Compute the layer; its gradient goes to the values.

        Args:
            given, named: the input, under whatever name the layer has for it.

        Returns:
            Its output.
        """
        (inputs,) = (*given, *named.values())
        weight = self.get_parameter("weight")
        entries = self.sparse_entries
        if self._parameters.get(TRAINED_VALUES) is not entries.values:
            raise DeltaLensError(
                f"{entries.name}: its values were replaced after SparseTuning (by fully_shard?) "
                "and would not be trained. Sparse tuning works in one process or under DDP: call "
                "merge() before the model is sharded"
            )
        if not torch.compiler.is_compiling():  # Steps write, too; this is for changes by hand.
            entries.write(weight)
        # A weight that needs its whole gradient is being ranked, not trained.
        if weight.requires_grad or not len(entries) or not torch.is_grad_enabled():
            return self.plain_forward(inputs)
        apply: Any = _SampledLinear.apply
        output: Tensor = apply(inputs, weight, self._parameters.get("bias"), entries.values, self)
        return output

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made when it is needed, so that pickle cannot find it by its name.
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _empty_layer, (type(self).__mro__[2],), state

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        values = self.sparse_entries.values.data
        moved = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.sparse_entries.values = self.get_parameter(TRAINED_VALUES)
        self.sparse_entries.keep_dtype(values)
        self.sparse_entries.to(self.get_parameter("weight").device)
        return moved

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        entries = self.sparse_entries
        entries.write(self.get_parameter("weight"))
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: each for name, each in entries.stored().items()})

    def _load_from_state_dict(self, state: Any, prefix: str, *others: Any) -> None:
        needed = ("weight", TRAINED_VALUES, *NEEDED)
        missing = [prefix + name for name in needed if prefix + name not in state]
        if 0 < len(missing) < len(needed):
            raise DeltaLensError(
                f"{self.sparse_entries.name}: a checkpoint of a model whose entries are not "
                f"trained, or a part of one: it has no {', '.join(missing)}. Load it before "
                "SparseTuning is made"
            )
        if missing:
            super()._load_from_state_dict(state, prefix, *others)
            return
        found = {name: state.pop(prefix + name) for name in STORED if prefix + name in state}
        weight, values = (state.pop(prefix + name) for name in ("weight", TRAINED_VALUES))
        own = self.get_parameter("weight"), self.sparse_entries
        own[1].load(own[0], weight, found, values)
        state |= {prefix + "weight": own[0].detach(), prefix + TRAINED_VALUES: own[1].values.data}
        super()._load_from_state_dict(state, prefix, *others)


@functools.cache
def _sampled_class(kind: Any) -> Any:
    return type(f"Sparse{kind.__name__}", (_Sampled, kind), {})


def _empty_layer(kind: Any) -> Any:
    """What a copy's or a pickle's state is put into."""
    made = _sampled_class(kind)
    return made.__new__(made)


def is_adapted(module: nn.Module) -> bool:
    """Whether chosen entries of a layer are trained.

    Args:
        module: a linear layer.

    Returns:
        True between `adapt_layer` and `restore_layer`.
    """
    return isinstance(module, _Sampled)


def rows_are_inputs(module: nn.Module) -> bool:
    """Whether a layer keeps its weight the other way round, (inputs, outputs).

    Args:
        module: a linear layer.

    Returns:
        True of transformers' `Conv1D`.
    """
    return not isinstance(module, nn.Linear)


def adapt_layer(layer: Layer, flat: Tensor, read: TurnedColumns) -> TrainedEntries:
    """Make a layer train chosen entries.

    Args:
        layer: the layer; its class is replaced by one derived from it.
        flat: ascending flat indices of the entries.
        read: the columns of the input that was read last, shared by the layers.

    Returns:
        The entries; their values are the layer's parameter `sparse_values`.
    """
    entries = TrainedEntries(layer, flat, read, rows_are_inputs(layer.module))
    module: Any = layer.module
    module.sparse_entries = entries
    module.register_parameter(TRAINED_VALUES, entries.values)
    module.__class__ = _sampled_class(cast(Any, type(module)))
    return entries


def restore_layer(layer: Layer) -> None:
    """Make a layer what it was, its weight excepted.

    Args:
        layer: a layer that `adapt_layer` has changed.
    """
    module: Any = layer.module
    module.__class__ = type(module).__mro__[2]
    del module.sparse_entries
    del module._parameters[TRAINED_VALUES]
