"""Models, data and optimizers to be watched, of the tests of masks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaForCausalLM

from tests.support.models import tiny
from tests.support.oracles.pairs import same_bits

VOCABULARY = 23


def llama(dtype: torch.dtype = torch.float32, layers: int = 2) -> LlamaForCausalLM:
    """Two blocks; the embedding is the head as well, and some of its rows are absent in a batch."""
    torch.manual_seed(0)
    model = tiny(
        "llama",
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        max_position_embeddings=16,
        tie_word_embeddings=True,
    )
    return model.to(dtype)  # type: ignore[no-any-return]


class Awkward(nn.Module):
    """Gradients with ties and zeros, of no dimension, of no entry, in columns, and none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.steps = nn.Parameter(torch.zeros(3, 7))
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Parameter(torch.randn(VOCABULARY, 8).t())
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.idle = nn.Linear(3, 3)
        slopes = torch.tensor([0.0, 0.0, 0.25, -0.25, 0.25, 0.5, -1.0])
        self.register_buffer("slopes", slopes.repeat(3, 1))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        logits: Tensor = hidden * self.scale @ self.head + self.empty.sum()
        # Exact ties at every batch, and a gradient of its own for every mean of the ids.
        tied = (self.steps * self.slopes).sum() * ids.float().mean().round()
        return logits + tied.to(logits.dtype) * torch.arange(VOCABULARY) / VOCABULARY


def awkward(dtype: torch.dtype = torch.float32) -> Awkward:
    torch.manual_seed(0)
    return Awkward().to(dtype)


MODELS = {"Llama": llama, "awkward": awkward}


def batches(seed: int = 0, size: int = 4) -> Iterator[Tensor]:
    """Ids; a third of the vocabulary is never among them."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, VOCABULARY * 2 // 3, (size, 5), generator=generator)


def micro_batches(steps: int, count: int, seed: int = 0) -> list[list[Tensor]]:
    """The micro-batches of each step."""
    data = batches(seed)
    return [[next(data) for _ in range(count)] for _ in range(steps)]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    out = model(ids)
    logits = (out if isinstance(out, Tensor) else out.logits).float()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


Gradients = dict[str, Tensor]


def gradients_of(model: nn.Module) -> Gradients:
    """A copy of what is there."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def bits_of(model: nn.Module) -> Gradients:
    """A copy of the parameters."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def seen_by(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[Gradients]:
    """The gradients that the optimizer finds inside each of its steps, from now on."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: list[Gradients] = []
    inner: Any = optimizer._init_group

    def watching(group: dict[str, Any], *lists: Any, **more: Any) -> Any:
        if group is optimizer.param_groups[0]:
            seen.append({})
        for parameter in group["params"]:
            if parameter.grad is not None:
                seen[-1][names[id(parameter)]] = parameter.grad.detach().clone()
        return inner(group, *lists, **more)

    optimizer._init_group = watching  # type: ignore[attr-defined]
    return seen


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[Sequence[Tensor]],
    clip: float | None = None,
) -> list[Gradients]:
    """Train; the gradients as they were when each step was called.

    They are the mean over micro-batches, in the order of Algorithm 1's operations.
    """
    given = []
    for some in steps:
        for ids in some:
            loss_of(model, ids).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(len(some))
        if clip is not None:
            clip_grad_norm_(model.parameters(), clip)
        given.append(gradients_of(model))
        optimizer.step()
        optimizer.zero_grad()
    return given


def assert_same_bits(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert same_bits(found[name].detach(), value.detach()), name
