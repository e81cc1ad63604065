"""Squared gradients of single examples, from one pass over each batch.

A linear layer's gradient of one example is the product of what went in and what came back for that
example, and the sum of those products is the batch's gradient: the pass costs what a plain one
does. Where examples cannot be told apart (a loss of the user's own, a layer that is called twice,
experts that mix tokens), each example has a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.methods.mask_layers import Layer
from deltalens.methods.salience.calibration import (
    Batch,
    Calibration,
    Take,
    accumulator,
    example_count,
    single_examples,
)
from deltalens.methods.salience.traces import LayerTrace

__all__ = ["ExampleGradients"]

_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}
"""How far the loss of a batch may lie from what its examples' losses say, relative."""


class ExampleGradients:
    """Accumulates the squared gradients of single examples.

    Args:
        run: the model and its batches.
        take: takes the gradient of each weight on each batch, if it is wanted, too.
    """

    def __init__(self, run: Calibration, take: Take | None) -> None:
        self._run, self._take = run, take
        self._squares = {name: accumulator(weight) for name, weight in run.weights.items()}
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._scales: Tensor | None = None
        self._waiting: list[tuple[Layer, Tensor, Tensor]] = []
        self.examples = 0
        """Number of examples so far that had a loss."""
        self.separately = False
        """Whether some example had a pass of its own, in a batch of several."""

    def means(self) -> dict[str, Tensor]:
        """Compute the mean over the examples of the squared gradients; once, at the end.

        Returns:
            Weight name -> means of its shape.
        """
        for squares in self._squares.values():
            squares /= max(1, self.examples)
        return self._squares

    def accumulate(self) -> None:
        """Run over all batches.

        Raises:
            DeltaLensError: as `Calibration.loss_of`.
        """
        together, checked = self._run.own_loss, False
        for given in self._run.batches:
            batch = self._run.on_device(given)
            count = example_count(batch)
            if count > 1 and together and self._together(batch, count, check=not checked):
                checked = True
            else:
                together &= checked or count == 1
                self._one_by_one(batch, count)
                self.separately |= count > 1
            self._run.watch.advance(1)

    # --- one pass for all examples ----------------------------------------------------------------

    def _together(self, batch: Batch, count: int, check: bool) -> bool:
        """Accumulate a batch in one pass; False, and nothing done, if that cannot be."""
        inputs: dict[str, list[Tensor]] = {}
        with LayerTrace(self._run.layers, self._came_back, inputs if check else None) as trace:
            output, loss = self._run.output_and_loss(batch)
            self._run.check_graph(loss)
            logits = getattr(output, "logits", None)
            if not isinstance(logits, Tensor) or len(logits) != count or not logits.requires_grad:
                return False
            if not all(_by_example(shapes, count) for shapes in trace.calls.values()):
                return False
            self._scales = None
            if check and not self._add_up(batch, logits, loss, inputs):
                return False
            self._waiting = []
            logits.register_hook(self._logits_came_back)
            loss.backward()
        assert self._scales is not None
        self.examples += int((self._scales > 0).sum())
        return True

    def _logits_came_back(self, gradient: Tensor) -> None:
        """Learn each example's share of the loss before the layers' gradients come."""
        self._scales = _scales(gradient)
        for waiting in self._waiting:
            self._came_back(*waiting)
        self._waiting = []

    def _came_back(self, layer: Layer, entered: Tensor, gradient: Tensor) -> None:
        if self._scales is None:
            # The layer computes the logits, and hears of their gradient first.
            self._waiting.append((layer, entered, gradient))
            return
        name, weight = layer.weight_name, self._run.weights[layer.weight_name]
        self._run.reached.add(name)
        count = len(self._scales)
        # A Conv1D's weight is (in, out).
        plain = isinstance(layer.module, nn.Linear)
        left, right = (gradient, entered) if plain else (entered, gradient)
        left = left.reshape(count, -1, left.shape[-1]).transpose(1, 2)
        right = right.reshape(count, -1, right.shape[-1])
        product, total = self._buffer("product", weight), self._buffer("total", weight)
        squares = self._squares[name]
        total.zero_()
        for index, scale in enumerate(self._scales.tolist()):
            if scale == 0:
                continue
            torch.mm(left[index], right[index], out=product)
            if self._take is not None:
                total.add_(product)
            wide = product.to(squares.dtype)
            squares.addcmul_(wide, wide, value=scale * scale)
        if self._take is not None:
            self._take(name, total)

    def _buffer(self, use: str, weight: Tensor) -> Tensor:
        key = (use, weight.shape, weight.dtype, weight.device)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(weight, requires_grad=False)
        return self._buffers[key]

    def _add_up(
        self, batch: Batch, logits: Tensor, loss: Tensor, inputs: dict[str, list[Tensor]]
    ) -> bool:
        """Whether the examples, one by one, add up to the batch.

        The batch's loss must be the mean of theirs that the scales suppose, and the layers must see
        of each what they see of it in the batch.
        """
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        scales = _scales(gradient).tolist()
        whole = {name: calls[0] for name, calls in inputs.items()}
        total = 0.0
        for index, example in enumerate(single_examples(batch)):
            inputs.clear()
            with torch.no_grad():
                _, alone = self._run.output_and_loss(example)
            if scales[index]:
                total += float(alone) / scales[index]
            for name, (entered,) in inputs.items():
                part = whole[name].reshape(len(scales), -1, entered.shape[-1])[index]
                single = entered.reshape(-1, entered.shape[-1])
                largest = float(part.abs().max())
                if part.shape != single.shape or float((part - single).abs().max()) > largest / 20:
                    return False
        wanted = float(loss.detach())
        return abs(total - wanted) <= _TOLERANCE.get(logits.dtype, 1e-4) * abs(wanted)

    # --- one pass per example ---------------------------------------------------------------------

    def _one_by_one(self, batch: Batch, count: int) -> None:
        def square(name: str, gradient: Tensor) -> None:
            wide = gradient.to(self._squares[name].dtype)
            self._squares[name].addcmul_(wide, wide)
            if self._take is not None and count == 1:
                self._take(name, gradient)

        for example in single_examples(batch) if count > 1 else [batch]:
            if _has_no_label(example):
                continue
            self._run.backward(square, [example])
            self.examples += 1
        if self._take is not None and count > 1:
            self._run.backward(self._take, [batch])


def _by_example(shapes: Sequence[tuple[int, ...]], count: int) -> bool:
    """Whether a layer is called once, with examples in the first dimension, or with their positions
    one after the other."""
    if len(shapes) != 1 or len(shapes[0]) < 2:
        return False
    (shape,) = shapes
    return shape[0] == count or (len(shape) == 2 and shape[0] % count == 0)


def _scales(gradient: Tensor) -> Tensor:
    """Each example's loss over its share of the batch's mean, from the gradient of the logits.

    A loss that is a mean over tokens gives an example of few tokens a small share. The tokens that
    count are those whose logits have a gradient.

    Args:
        gradient: (examples, tokens, vocabulary), or (examples, labels).

    Returns:
        float64, (examples,); 0 for an example without tokens that count.
    """
    if gradient.dim() < 3:
        return torch.full((len(gradient),), float(len(gradient)), dtype=torch.float64)
    counted = gradient.flatten(1, -2).any(-1).sum(1).double()
    return torch.where(counted > 0, counted.sum() / counted, 0.0).cpu()


def _has_no_label(example: Batch) -> bool:
    labels = example.get("labels")
    return (
        isinstance(labels, Tensor)
        and not labels.is_floating_point()
        and bool((labels == -100).all())
    )
