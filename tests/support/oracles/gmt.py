"""Gradient-Mask Tuning as the paper writes it (arXiv 2406.15330, Algorithm 1, Eq. 1-4), slowly.

Gradients are tensors by name; a mask is a bool tensor, true where an entry stays.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor, nn

Gradients = Mapping[str, Tensor]
Masks = dict[str, Tensor]
Batch = TypeVar("Batch")


def stay(entries: int, ratio: float | str) -> int:
    """k = n - round(mask ratio * n): the ratio as it is typed, halves to the even number.

    Where nothing would stay there is no T_k to speak of: one does.
    """
    return max(1, entries - round(Fraction(str(ratio)) * entries))


def threshold(unit: Iterable[Tensor], ratio: float | str) -> float:
    """T_k: the k-th largest magnitude among all entries of these tensors."""
    sizes = torch.cat([gradient.double().abs().flatten() for gradient in unit])
    return sizes.sort(descending=True).values[stay(len(sizes), ratio) - 1].item()


def units(names: Iterable[str], scope: str) -> list[list[str]]:
    """What has one T_k: every tensor, every block (what is in none, alone), or all of them."""

    def unit_of(name: str) -> str:
        if scope == "global":
            return ""
        block = re.match(r"((?:[^.]+\.)*?\d+)\.", name)
        return block[1] if scope == "layer" and block else name

    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(unit_of(name), []).append(name)
    return list(found.values())


def thresholds(gradients: Gradients, ratio: float | str, scope: str) -> dict[str, float]:
    """T_k of every tensor that has entries."""
    names = [name for name, gradient in gradients.items() if gradient.numel()]
    return {
        name: least
        for unit in units(names, scope)
        for least in [threshold((gradients[name] for name in unit), ratio)]
        for name in unit
    }


def masks(gradients: Gradients, ratio: float | str, scope: str = "tensor") -> Masks:
    """Eq. 3: an entry stays if |g| >= T_k, ties with it as well."""
    least = thresholds(gradients, ratio, scope)
    return {
        name: gradient.double().abs() >= least.get(name, 0.0)
        for name, gradient in gradients.items()
    }


def masked(gradients: Gradients, kept: Masks) -> dict[str, Tensor]:
    """M(Γ, k): the gradient, and zero where an entry does not stay."""
    return {
        name: torch.where(kept[name], gradient, torch.zeros_like(gradient))
        for name, gradient in gradients.items()
    }


def coverage(steps: Sequence[Masks]) -> float:
    """The share of entries that any step has kept."""
    names = {name for step in steps for name in step}
    ever = {
        name: torch.stack([step[name] for step in steps if name in step]).any(0) for name in names
    }
    return sum(int(mask.sum()) for mask in ever.values()) / sum(m.numel() for m in ever.values())


def train(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    steps: Iterable[Sequence[Batch]],
    learning_rate: float,
    ratio_at: Callable[[int], float | str],
    scope: str,
) -> list[Masks]:
    """Algorithm 1, line by line; the masks of its steps.

    Args:
        model: trained in place.
        loss_of: L(Θ, B).
        steps: the N micro-batches of each step.
        learning_rate: η.
        ratio_at: mask ratio of a step.
        scope: what has one T_k.
    """
    made = []
    theta = dict(model.named_parameters())
    for t, batches in enumerate(steps):
        gamma: dict[str, Tensor] = {}
        for batch in batches:
            found = torch.autograd.grad(
                loss_of(model, batch), list(theta.values()), allow_unused=True
            )
            for name, gradient in zip(theta, found, strict=True):
                if gradient is not None:
                    gamma[name] = gamma[name] + gradient if name in gamma else gradient
        gamma = {name: gradient / len(batches) for name, gradient in gamma.items()}
        kept = masks(gamma, ratio_at(t), scope)
        with torch.no_grad():
            for name, mask in kept.items():
                moved = theta[name].sub(gamma[name], alpha=learning_rate)
                theta[name].copy_(torch.where(mask, moved, theta[name]))
        made.append(kept)
    return made


def step_of_update(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], kept: Masks
) -> None:
    """Eq. 1 with any optimizer: it is given the masked gradient; what does not stay is put back."""
    before = {name: parameters[name].detach().clone() for name in kept}
    for name, mask in kept.items():
        gradient = parameters[name].grad
        assert gradient is not None
        gradient.copy_(torch.where(mask, gradient, torch.zeros_like(gradient)))
    optimizer.step()
    with torch.no_grad():
        for name, mask in kept.items():
            parameters[name].copy_(torch.where(mask, parameters[name], before[name]))
