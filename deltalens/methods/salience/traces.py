"""Watch what goes into linear layers, and which gradients come back to their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from deltalens.errors import DeltaLensError
from deltalens.methods.mask_layers import Layer

__all__ = ["LayerTrace"]


class LayerTrace:
    """While entered, hands over the input of each layer and the gradient of its output.

    The weights themselves need no gradients: a layer whose input takes none begins the graph.

    Args:
        layers: the layers.
        take: called in the backward pass, for each call of a layer, with the layer, its input
            (..., in) and the gradient of its output (..., out).
        inputs: layer name -> where the inputs of its calls are collected; None: nowhere.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        take: Callable[[Layer, Tensor, Tensor], None],
        inputs: dict[str, list[Tensor]] | None = None,
    ) -> None:
        self._layers, self._take, self._inputs = layers, take, inputs
        self._handles: list[RemovableHandle] = []
        self.calls: dict[str, list[tuple[int, ...]]] = {}
        """Layer name -> shapes of its inputs, one per call."""

    def __enter__(self) -> LayerTrace:
        self.calls = {layer.name: [] for layer in self._layers}
        for layer in self._layers:
            self._handles.append(
                layer.module.register_forward_hook(
                    lambda module, args, output, layer=layer: self._forward(layer, args, output)
                )
            )
        return self

    def _forward(self, layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> None:
        entered = args[0].detach()
        version = entered._version
        self.calls[layer.name].append((*entered.shape,))
        if self._inputs is not None:
            self._inputs.setdefault(layer.name, []).append(entered)
        if not output.requires_grad:
            output.requires_grad_()

        def came_back(gradient: Tensor) -> None:
            if entered._version != version:
                raise DeltaLensError(
                    f"{layer.name}: its input is changed in place after the layer has read it, so "
                    "the gradients of single examples cannot be computed"
                )
            self._take(layer, entered, gradient)

        output.register_hook(came_back)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
