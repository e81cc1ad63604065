"""A model whose loss is known in closed form, and rows of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import deltalens
from deltalens.io.records import StudyRecord

ROWS = [
    {"prompt": f"{name} {a}+{b}>", "completion": f"{a}+{b}={a + b}"}
    for name, a, b in (
        *(("ann", 1, 2), ("bob", 3, 4), ("eve", 5, 1), ("joe", 2, 2), ("kim", 4, 4)),
        *(("max", 7, 1), ("sue", 3, 3), ("tom", 6, 2)),
    )
]
SIZE = 12


class Quadratic(nn.Module):
    """x H x / 2 + g x over all parameters, a buffer and an integer beside them, in fp64."""

    def __init__(self, point: Tensor, curvature: Tensor, slope: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(point[:6].reshape(2, 3).clone())
        self.bias = nn.Parameter(point[6:9].clone())
        self.last = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        self.last.weight.data = point[9:].reshape(1, 3).clone()
        self.register_buffer("curvature", curvature)
        self.register_buffer("slope", slope)
        self.register_buffer("steps", torch.tensor(7))

    def point(self) -> Tensor:
        """All parameters as one vector."""
        return torch.cat([p.reshape(-1) for p in self.parameters()])

    def loss(self) -> Tensor:
        """The quadratic."""
        x = self.point()
        return 0.5 * x @ self.curvature @ x + self.slope @ x


def quadratics(count: int) -> list[Quadratic]:
    """Models at different points of one quadratic, whose curvature is symmetric and indefinite."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    half = normal(SIZE, SIZE)
    curvature, slope = (half + half.T) / 2, normal(SIZE)
    return [Quadratic(normal(SIZE), curvature, slope) for _ in range(count)]


class Odd(Quadratic):
    """With parameters besides that no line leads through: complex, and without entries."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__(*given)
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.empty = nn.Parameter(torch.zeros(0, 4, dtype=torch.float64))

    def point(self) -> Tensor:
        """The others, all of which move."""
        parts = (self.matrix, self.bias, self.last.weight)
        return torch.cat([part.reshape(-1) for part in parts])

    def loss(self) -> Tensor:
        """Of all parameters."""
        return super().loss() * self.scale * self.phase.abs().sum() + self.empty.sum()


def measured(model: Any) -> dict[str, float]:
    """The metric."""
    return {"loss": float(model.loss())}


def scan(model: nn.Module, out: Path, **spec: Any) -> StudyRecord:
    """A landscape of a quadratic."""
    return deltalens.scan_landscape(
        model, out, **{"metric": measured, "loss": lambda m: m.loss(), "version": 1, **spec}
    )


def closed_form(origin: Quadratic, directions: Sequence[Tensor], frame: pd.DataFrame) -> Any:
    """The quadratic at every row's point, in numpy."""
    start = origin.point().detach().numpy()
    curvature, slope = origin.curvature.numpy(), origin.slope.numpy()
    places = frame[["a", "b"]].to_numpy()[:, : len(directions)]
    points = start + places @ np.stack([direction.numpy() for direction in directions])
    return 0.5 * np.einsum("ni,ij,nj->n", points, curvature, points) + points @ slope


class Raising:
    """A metric that raises at its n-th call."""

    def __init__(self, calls: int, error: BaseException, metric: Callable[[Any], Any] = measured):
        self.left, self.error, self.metric = calls, error, metric
        # Under the version that `scan` gives, this is the same study as without the error.
        self.__qualname__ = metric.__qualname__

    def __call__(self, model: nn.Module) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.metric(model)
