"""Calibration batches, and passes over them that stream the gradients of some weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import DeltaLensError, errors_from, fault_list
from deltalens.methods.mask_layers import Layer

__all__ = [
    "Batch",
    "Calibration",
    "Loss",
    "PassWatch",
    "Take",
    "accumulator",
    "example_count",
    "first_batches",
    "single_examples",
]

Batch = Mapping[str, Any]
"""Tensors by the names under which the model takes them, labels among them."""
Loss = Callable[[nn.Module, Any], Tensor]
"""Computes the loss of a model on a batch: a scalar."""
Take = Callable[[str, Tensor], object]
"""Takes the gradient of one weight, whose memory may be reused afterwards."""


@dataclass(frozen=True, kw_only=True)
class PassWatch:
    """Told of passes over the batches."""

    begin: Callable[[str, int], None] = lambda what, batches: None
    """Called when a pass begins, with what it computes and how many batches it goes over."""
    advance: Callable[[int], None] = lambda batches: None
    """Called with the number of further batches that are done."""


def accumulator(weight: Tensor) -> Tensor:
    """Allocate zeros to accumulate in: fp32, or fp64 if the weight is.

    Args:
        weight: the weight.

    Returns:
        Zeros of its shape, on its device.
    """
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.zeros(weight.shape, dtype=dtype, device=weight.device)


class Calibration:
    """A model, the weights that are looked at, and the batches that its loss is computed on.

    Args:
        model: the model, in evaluation mode, whose parameters take no gradients.
        layers: the layers whose weights are looked at.
        batches: the batches.
        loss: the loss; None: what the model returns as `loss`.
        watch: told of every batch of a pass.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        batches: Sequence[Batch],
        loss: Loss | None,
        watch: PassWatch | None = None,
    ) -> None:
        self.watch = watch or PassWatch()
        self.model, self.layers, self.batches = model, layers, batches
        self.weights: dict[str, nn.Parameter] = {
            layer.weight_name: layer.module.get_parameter("weight") for layer in layers
        }
        self.own_loss = loss is None
        """Whether the loss is the model's own."""
        self._loss = loss
        self._device = next(iter(self.weights.values())).device
        self.reached: set[str] = set()
        """Weights that had a gradient."""

    def on_device(self, batch: Batch) -> dict[str, Any]:
        """Move the tensors of a batch to the model.

        Args:
            batch: the batch.

        Returns:
            A new batch.
        """
        return {
            key: value.to(self._device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    def output_and_loss(self, batch: Batch) -> tuple[Any, Tensor]:
        """Run the model on a batch.

        Args:
            batch: the batch, on the model's device.

        Returns:
            What the model returned, None with a loss of the user's own; and the loss, a scalar.

        Raises:
            DeltaLensError: the model fails, there is no loss, or it is no scalar.
        """
        output: Any = None
        loss: Any
        if self._loss is not None:
            loss = self._loss(self.model, batch)
        else:
            with errors_from("the model", "the loss of a calibration batch"):
                output = self.model(**batch)
            loss = getattr(output, "loss", None)
        if not isinstance(loss, Tensor):
            raise DeltaLensError(
                f"{type(self.model).__name__} returns no loss for a batch of "
                f"{', '.join(batch)}: add labels, or give loss=, a function of model and batch"
            )
        if loss.numel() != 1:
            raise DeltaLensError(f"the loss has the shape {(*loss.shape,)}: it must be one number")
        return output, loss.reshape(())

    def loss_of(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch, with a graph.

        Args:
            batch: the batch, on the model's device.

        Returns:
            A scalar.

        Raises:
            DeltaLensError: as in `output_and_loss`, or the loss depends on no weight.
        """
        _, loss = self.output_and_loss(batch)
        self.check_graph(loss)
        return loss

    def check_graph(self, loss: Tensor) -> None:
        """Refuse a loss without a gradient.

        Args:
            loss: the loss.

        Raises:
            DeltaLensError: it depends on no weight that is looked at.
        """
        if not loss.requires_grad:
            raise DeltaLensError(
                f"the loss of {type(self.model).__name__} has no gradient: it depends on none of "
                f"the {len(self.weights)} weights, or was computed under no_grad"
            )

    @contextmanager
    def gradients(self, take: Take) -> Iterator[None]:
        """Hand over the gradient of each weight as soon as a backward pass has it, and free it.

        Args:
            take: takes each.

        Yields:
            Nothing.
        """

        def hand_over(name: str, weight: Tensor) -> None:
            assert weight.grad is not None
            self.reached.add(name)
            take(name, weight.grad)
            weight.grad = None

        handles = []
        try:
            for name, weight in self.weights.items():
                weight.requires_grad_(True)
                handles.append(
                    weight.register_post_accumulate_grad_hook(
                        lambda weight, name=name: hand_over(name, weight)
                    )
                )
            yield
        finally:
            for handle in handles:
                handle.remove()
            for weight in self.weights.values():
                weight.requires_grad_(False)
                weight.grad = None

    def backward(self, take: Take, batches: Iterable[Batch] | None = None) -> None:
        """Run a forward and a backward pass over each batch.

        Args:
            take: takes the gradient of each weight, batch by batch.
            batches: the batches; None: all.

        Raises:
            DeltaLensError: as in `loss_of`.
        """
        with self.gradients(take):
            for batch in self.batches if batches is None else batches:
                self.loss_of(self.on_device(batch)).backward()
                self.watch.advance(1)

    def check_reached(self) -> None:
        """Refuse weights that no loss depended on.

        Raises:
            DeltaLensError: there are some.
        """
        if unreached := [name for name in self.weights if name not in self.reached]:
            raise DeltaLensError(
                fault_list("no calibration batch gives these weights a gradient:", unreached)
            )


def example_count(batch: Batch) -> int:
    """Count the examples in a batch.

    Args:
        batch: the batch.

    Returns:
        The length of its labels, or of its first tensor if there are none; 1 if it has no tensor.
    """
    tensors = [batch.get("labels"), *batch.values()]
    return next(
        (len(each) for each in tensors if isinstance(each, Tensor) and each.dim()),
        1,
    )


def single_examples(batch: Batch) -> Iterator[dict[str, Any]]:
    """Take a batch apart.

    Args:
        batch: the batch.

    Yields:
        Batches of one example. Tensors of another length than the labels stay whole.
    """
    count = example_count(batch)
    for index in range(count):
        yield {
            key: value[index : index + 1]
            if isinstance(value, Tensor) and value.dim() and len(value) == count
            else value
            for key, value in batch.items()
        }


def first_batches(batches: Iterable[Batch], steps: int) -> list[Batch]:
    """Take the first batches, and read no further.

    Args:
        batches: the batches.
        steps: how many at most.

    Returns:
        The batches.

    Raises:
        DeltaLensError: there is none, one is no mapping, or `steps` is not a positive number.
    """
    if type(steps) is not int or steps < 1:
        raise DeltaLensError(f"steps={steps!r}: give a number of calibration batches from 1")
    found = list(itertools.islice(batches, steps))
    if not found:
        raise DeltaLensError("there is no calibration batch: the batches are empty")
    if other := [batch for batch in found if not isinstance(batch, Mapping)]:
        raise DeltaLensError(
            f"a calibration batch is a {type(other[0]).__name__}: give mappings from names to "
            "tensors, labels among them"
        )
    return found
