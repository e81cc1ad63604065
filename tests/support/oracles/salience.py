"""Salience as the paper writes it (arXiv 2412.13488, Sec. 3.2), slowly and in fp64.

Of a network of two layers: gradients by autograd, one batch at a time; Fisher one example at a
time; GRaSP by the whole Hessian as a matrix; SynFlow by its closed form. Nothing here imports
deltalens.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Tensors = dict[str, Tensor]
NAMES = ("first.weight", "second.weight")


class TwoLayers(nn.Module):
    """Vectors in, a distribution over labels out, at each position; its loss is a mean over the
    positions that have a label."""

    def __init__(
        self,
        width: int = 3,
        hidden: int = 4,
        labels: int = 3,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden, bias=bias)
        self.activation = activation
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(hidden, labels, bias=bias)

    def forward(self, vectors: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.second(self.drop(self.activation(self.first(vectors))))
        if labels is None:
            return logits
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def two_layers(dtype: torch.dtype = torch.float32, **sizes: Any) -> TwoLayers:
    """A network in training mode, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return TwoLayers(**sizes).to(dtype)


def batches_for(
    count: int = 5, examples: int = 3, positions: int = 4, dtype: torch.dtype = torch.float32
) -> list[dict[str, Tensor]]:
    """Batches whose examples have different numbers of labels."""
    draw = torch.Generator().manual_seed(11)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, 3, (examples, positions), generator=draw)
        for example in range(1, examples):
            labels[example, example:] = -100
        vectors = torch.randn(examples, positions, 3, generator=draw, dtype=torch.float64)
        batches.append({"vectors": vectors.to(dtype), "labels": labels})
    return batches


def _loss(weights: Sequence[Tensor], biases: Sequence[Tensor], batch: dict[str, Tensor]) -> Tensor:
    hidden = torch.tanh(batch["vectors"].double() @ weights[0].T + biases[0])
    logits = hidden @ weights[1].T + biases[1]
    labels = batch["labels"]
    kept = labels != -100
    chosen = logits.log_softmax(-1)[kept].gather(-1, labels[kept][:, None])
    return -chosen.mean()


class Twin:
    """The metrics of a two-layer network."""

    def __init__(self, model: TwoLayers, batches: Sequence[dict[str, Tensor]]) -> None:
        layers = (model.first, model.second)
        self.weights = [layer.weight.detach().double() for layer in layers]
        self.biases = [layer.bias.detach().double() for layer in layers]
        self.batches = batches

    def gradient(self, batch: dict[str, Tensor]) -> list[Tensor]:
        leaves = [weight.clone().requires_grad_() for weight in self.weights]
        return list(torch.autograd.grad(_loss(leaves, self.biases, batch), leaves))

    def mean_gradient(self) -> list[Tensor]:
        return _mean([self.gradient(batch) for batch in self.batches])

    def hessian(self, batch: dict[str, Tensor]) -> Tensor:
        shapes = [weight.shape for weight in self.weights]
        sizes = [weight.numel() for weight in self.weights]

        def of_all(flat: Tensor) -> Tensor:
            parts = [
                part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)
            ]
            return _loss(parts, self.biases, batch)

        found: Tensor = torch.autograd.functional.hessian(of_all, _flat(self.weights))
        return found

    def grasp(self, inside: bool) -> list[Tensor]:
        mean = _flat(self.mean_gradient())
        products = [
            self.hessian(batch) @ (mean if inside else _flat(self.gradient(batch)))
            for batch in self.batches
        ]
        product = torch.stack(products).mean(0).split([each.numel() for each in self.weights])
        return [
            -part.view(weight.shape) * weight
            for part, weight in zip(product, self.weights, strict=True)
        ]

    def fisher(self) -> list[Tensor]:
        singles = [
            {name: tensor[index : index + 1] for name, tensor in batch.items()}
            for batch in self.batches
            for index in range(len(batch["labels"]))
        ]
        return _mean([[part**2 for part in self.gradient(single)] for single in singles])

    def scores(self, metric: str, expectation: str) -> Tensors:
        if metric == "grasp":
            return self.named(self.grasp(expectation == "inside"))
        if metric == "fisher":
            return self.named(self.fisher())
        if metric == "magnitude":
            return self.named([weight.abs() for weight in self.weights])
        gradients = [self.gradient(batch) for batch in self.batches]
        if expectation == "inside":
            gradients = [_mean(gradients)]
        return self.named(_mean([self._of(metric, each) for each in gradients]))

    def _of(self, metric: str, gradients: list[Tensor]) -> list[Tensor]:
        pairs = zip(gradients, self.weights, strict=True)
        if metric == "gradient":
            return [part.abs() for part, _ in pairs]
        if metric == "snip":
            return [(part * weight).abs() for part, weight in pairs]
        if metric == "force":
            return [-part * weight for part, weight in pairs]
        return [(part * weight) ** 2 for part, weight in pairs]

    @staticmethod
    def named(parts: list[Tensor]) -> Tensors:
        return dict(zip(NAMES, parts, strict=True))


def synflow(model: TwoLayers) -> Tensors:
    """Of W2 W1 without biases: |W1| * (|W2|^T 1) 1^T, and |W2| * 1 (|W1| 1)^T."""
    first, second = (each.weight.detach().double().abs() for each in (model.first, model.second))
    return {
        "first.weight": first * second.sum(0)[:, None],
        "second.weight": second * first.sum(1)[None],
    }


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _mean(several: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts).mean(0) for parts in zip(*several, strict=True)]
