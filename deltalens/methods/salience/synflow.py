"""SynFlow: how much flows through each weight, in a network made linear and positive.

R is the sum of all outputs of a network in which every parameter is replaced by its magnitude, and
activations and softmax by the identity; norms stay. Its input is one position of ones instead of an
embedding. A weight's score is |dR/dtheta * theta|.

Nothing of torch is patched: the substitutes are in effect only in a mode of this thread. All is
computed in fp64, since products of positive matrices grow with every layer, and the scores share
one power of two, which brings the largest near 1 and changes no ranking.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from deltalens.errors import DeltaLensError, describe_error, fault_list
from deltalens.methods.mask_layers import Layer
from deltalens.methods.salience.calibration import accumulator
from deltalens.methods.salience.preserved import computed_plainly
from deltalens.methods.salience.traces import LayerTrace

__all__ = ["synflow_scores"]

_ROWS = 1 << 22
"""Entries of a weight that are widened to fp64 at a time."""


def synflow_scores(model: nn.Module, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Compute the scores of layers' weights.

    Args:
        model: the model, in evaluation mode, whose parameters take no gradients.
        layers: the layers.

    Returns:
        Weight name -> scores of its shape; all share one power of two.

    Raises:
        DeltaLensError: the model cannot be run on one position of ones.
    """
    flows: dict[str, list[tuple[Tensor, Tensor]]] = {layer.name: [] for layer in layers}

    def take(layer: Layer, entered: Tensor, gradient: Tensor) -> None:
        flows[layer.name].append(
            (entered.flatten(0, -2).double(), gradient.flatten(0, -2).double())
        )

    with ExitStack() as stack:
        stack.enter_context(computed_plainly(model, "attn", "experts"))
        stack.enter_context(LayerTrace(layers, take))
        for handle in _identities(model):
            stack.callback(handle.remove)
        try:
            with _Linear(model):
                flow = _flow(model, layers)
            flow.backward()
        except Exception as error:
            raise DeltaLensError(
                f"SynFlow: {type(model).__name__} cannot be run as a linear network on one "
                f"position of ones: {describe_error(error)}"
            ) from error
    if still := [name for name, found in flows.items() if not found]:
        raise DeltaLensError(fault_list("nothing flows through these layers:", still))
    return _scores(layers, flows)


def _flow(model: nn.Module, layers: Sequence[Layer]) -> Tensor:
    """R: the sum of the outputs for one position of ones."""
    weight = layers[0].module.get_parameter("weight")
    embedding = getattr(model, "get_input_embeddings", None)
    if embedding is not None:
        width = embedding().weight.shape[-1]
        ones = torch.ones(1, 1, width, dtype=torch.float64, device=weight.device)
        output = model(inputs_embeds=ones)
    else:
        first = next(each for each in model.modules() if isinstance(each, nn.Linear))
        ones = torch.ones(1, 1, first.in_features, dtype=torch.float64, device=weight.device)
        output = model(ones)
    outcome = getattr(output, "logits", None)
    if outcome is None:
        outcome = output if isinstance(output, Tensor) else output[0]
    return outcome.sum()


def _scores(
    layers: Sequence[Layer], flows: Mapping[str, Sequence[tuple[Tensor, Tensor]]]
) -> dict[str, Tensor]:
    def pieces(layer: Layer) -> Any:
        """|dR/dtheta * theta| of some rows at a time, as rows of outputs."""
        plain = isinstance(layer.module, nn.Linear)
        weight = layer.module.get_parameter("weight").detach()
        by_output = weight if plain else weight.t()
        for start, rows in _in_rows(by_output):
            gradient = sum(
                back[:, start : start + len(rows)].t() @ x for x, back in flows[layer.name]
            )
            yield start, rows.abs().double().mul_(gradient).abs_()

    largest = max(float(piece.max()) for layer in layers for _, piece in pieces(layer))
    if not math.isfinite(largest) or not largest:
        raise DeltaLensError(
            f"SynFlow: the largest flow is {largest}; a product over the layers has left the range "
            "of fp64, or a weight is not finite"
        )
    scale, scores = 2.0 ** -math.frexp(largest)[1], {}
    for layer in layers:
        weight = layer.module.get_parameter("weight")
        found = accumulator(weight)
        by_output = found if isinstance(layer.module, nn.Linear) else found.t()
        for start, piece in pieces(layer):
            by_output[start : start + len(piece)] = piece.mul_(scale)
        scores[layer.weight_name] = found
    return scores


def _in_rows(weight: Tensor) -> Any:
    """Some rows of a weight at a time."""
    step = max(1, _ROWS // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        yield start, weight[start : start + step]


# --- the linear network ---------------------------------------------------------------------------


class _Product(torch.autograd.Function):
    """x |W|^T in fp64, W (out, in) of any dtype; nothing of W is kept."""

    @staticmethod
    def forward(context: Any, entered: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(weight)
        wide = [entered @ rows.abs().double().t() for _, rows in _in_rows(weight)]
        return torch.cat(wide, -1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = context.saved_tensors
        parts = [
            gradient[..., start : start + len(rows)] @ rows.abs().double()
            for start, rows in _in_rows(weight)
        ]
        return functools.reduce(Tensor.add_, parts), None


def _linear(entered: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    outcome: Tensor = _Product.apply(entered.double(), weight)  # type: ignore[no-untyped-call]
    return outcome if bias is None else outcome + bias.abs().double()


def _addmm(bias: Tensor, entered: Tensor, weight: Tensor) -> Tensor:
    return _linear(entered, weight.t(), bias)


def _embedding(indices: Tensor, weight: Tensor, *more: Any, **named: Any) -> Tensor:
    return functional.embedding(indices, weight, *more, **named).abs().double()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention without a softmax; at one position there is nothing to mask."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(times, -3) for each in (key, value))
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    return scores @ value


_MADE_IDENTITY = (
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid"),
    *("mish", "prelu", "relu", "relu6", "rrelu", "selu", "sigmoid", "silu", "softmax", "softmin"),
    *("softplus", "softsign", "tanh", "log_softmax"),
)
"""Functions whose first argument is what they return instead, under their names in torch,
torch.nn.functional and Tensor."""


def _identity(entered: Tensor, *more: Any, **named: Any) -> Tensor:
    return entered


def _to_double(entered: Tensor, *more: Any, **named: Any) -> Tensor:
    """Where a model rounds to another float, nothing is rounded."""
    moved = entered.to(*more, **named)
    if not moved.is_floating_point():
        return moved
    # Not by way of `moved`: a large number would be infinite in it.
    return entered.to(moved.device, torch.float64)


def _like_double(entered: Tensor, other: Tensor) -> Tensor:
    return _to_double(entered, other.dtype)


def _substitutes() -> dict[Any, Callable[..., Any]]:
    homes: tuple[Any, ...] = (torch, functional, Tensor)
    made = {
        getattr(home, name): _identity
        for home in homes
        for stem in _MADE_IDENTITY
        for name in (stem, f"{stem}_")
        if hasattr(home, name)
    }
    return {
        **made,
        **{getattr(Tensor, name): Tensor.double for name in ("float", "half", "bfloat16")},
        Tensor.to: _to_double,
        Tensor.type_as: _like_double,
        functional.linear: _linear,
        torch.addmm: _addmm,
        functional.embedding: _embedding,
        functional.scaled_dot_product_attention: _attention,
    }


class _Linear(TorchFunctionMode):
    """In effect in this thread while entered: the network is linear, positive and in fp64."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._substitutes = _substitutes()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        substitute = self._substitutes.get(func)
        if substitute is not None:
            return substitute(*args, **named)
        if getattr(func, "__name__", "") == "__get__":
            # A shape or a dtype; or a view, such as the transpose.
            found = func(*args, **named)
            if isinstance(found, Tensor) and self._is_parameter(args[0]):
                return found.detach().abs().double()
            return found
        args = tuple(self._positive(each) for each in args)
        return func(*args, **{key: self._positive(each) for key, each in named.items()})

    def _is_parameter(self, value: Any) -> bool:
        return isinstance(value, nn.Parameter) and id(value) in self._parameters

    def _positive(self, value: Any) -> Any:
        return value.detach().abs().double() if self._is_parameter(value) else value


def _identities(model: nn.Module) -> list[Any]:
    """Let modules that are activations return their input, however they compute it."""
    homes = ("torch.nn.modules.activation", "transformers.activations")
    return [
        module.register_forward_hook(lambda module, args, output: args[0])
        for module in model.modules()
        if type(module).__module__ in homes and not next(module.children(), None)
    ]
