"""Mask Fine-Tuning as the paper writes it (arXiv 2503.22764, Eq. 2-5), slowly, with a stable sort.

Where text and public code part, as the notes beside the paper settle it: the scores are ranked by
magnitude or by value, per layer; round(mask ratio * n) go, halves to even; of those that tie, the
lowest hashes first; a threshold keeps score > T. A mask is true where a weight stays.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.oracles.order import count_for, hashes

Tensors = dict[str, Tensor]


def mask_of(
    scores: Tensor,
    name: str,
    *,
    ratio: str | float | None = 0.1,
    threshold: float | None = None,
    rank_by: str = "magnitude",
    seed: int = 0,
) -> Tensor:
    """v(c) of Eq. 4, for one layer's weight of this name."""
    if threshold is not None:
        return scores > threshold
    flat = scores.flatten().double()
    if rank_by == "magnitude":
        flat = flat.abs()
    by_hash = torch.from_numpy(hashes(seed, name, flat.numel())).sort(stable=True).indices
    ascending = by_hash[flat[by_hash].sort(stable=True).indices]
    kept = torch.ones(flat.numel(), dtype=torch.bool)
    kept[ascending[: count_for(str(ratio), flat.numel())]] = False
    return kept.view(scores.shape)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Θ ⊙ M."""
    return torch.where(mask, weight, torch.zeros_like(weight))


def signs(scores: Tensor, threshold: float | None, rank_by: str) -> Tensor:
    """What the straight-through gradient carries beside the weight."""
    by_magnitude = threshold is None and rank_by == "magnitude"
    return scores.sign() if by_magnitude else torch.ones_like(scores)


def gradients(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    loss_of: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    **rule: Any,
) -> tuple[Tensor, Tensors]:
    """The loss of the masked model (Eq. 2), and the scores' gradients (Eq. 5).

    Args:
        model: plain; its weights stay as they are.
        scores: by the weight's name.
        loss_of: of a model and a batch.
        rule: as `mask_of` takes it.
    """
    weights = dict(model.named_parameters())
    replaced = {
        name: masked(weights[name].detach(), mask_of(some, name, **rule)).requires_grad_()
        for name, some in scores.items()
    }

    class Masked(nn.Module):
        def forward(self, *given: Any, **more: Any) -> Any:
            return torch.func.functional_call(model, replaced, given, more)

    loss = loss_of(Masked(), batch)
    found = torch.autograd.grad(loss, list(replaced.values()))
    spec = rule.get("threshold"), rule.get("rank_by", "magnitude")
    return loss.detach(), {
        name: weights[name].detach() * gradient * signs(scores[name], *spec)
        for name, gradient in zip(replaced, found, strict=True)
    }
