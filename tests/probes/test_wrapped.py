"""GradientProbe where something comes between a model and its loop: checkpointing, accelerate's
loss scale, a compiler."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deltalens import GradientProbe, load_run
from tests.support.models import small_llama
from tests.support.probed_training import Seen, batches, check, loss_of, net, train


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class Checkpointed(nn.Module):
    """A Llama of two blocks that computes its activations twice; its logits alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.llama = small_llama().train()
        self.llama.gradient_checkpointing_enable()
        self.forwards = 0
        self.llama.model.layers[0].mlp.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.forwards += 1

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.llama(ids, use_cache=False).logits
        return logits


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
def test_gradient_checkpointing(tmp_path: Path) -> None:
    plain, watched = Checkpointed(), Checkpointed()
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), steps=4)
    with GradientProbe(watched, tmp_path / "run"):
        seen = train(watched, torch.optim.AdamW(watched.parameters(), lr=1e-2), steps=4)
    assert watched.forwards == plain.forwards == 2 * 4
    assert_same(plain, watched)
    check(tmp_path / "run", seen)


def train_scaled(model: nn.Module, spoiled: tuple[int, ...], fused: bool) -> Seen:
    """Six steps under accelerate's loss scale, some with an infinity; the gradients of the others.

    accelerate makes no scaler for the CPU, but uses one that it has.
    """
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    bare = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    _, optimizer = accelerator.prepare(model, bare)
    seen, data = [], batches()
    for number in range(6):
        accelerator.backward(loss_of(model, next(data)))
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        if number in spoiled:
            grads["layers.0.weight"][0, 0] = math.inf
        else:
            scale = accelerator.scaler.get_scale()
            seen.append({name: grad / scale for name, grad in grads.items()})
        optimizer.step()
        optimizer.zero_grad()
    assert accelerator.scaler.get_scale() == 2.0**10 / 4  # halved by each infinity
    return seen


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_loss_scale_of_accelerate(tmp_path: Path, fused: bool) -> None:
    plain, watched = net(), net()
    train_scaled(plain, (1, 4), fused)
    with GradientProbe(watched, tmp_path / "run", updates=True) as probe:
        seen = train_scaled(watched, (1, 4), fused)
    assert probe.steps == len(seen) == 4
    assert_same(plain, watched)
    check(tmp_path / "run", seen)
    assert (load_run(tmp_path / "run").tensors["bits_changed"] > 0).all()


COMPILED = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler here"
    ),
]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=COMPILED)])
def test_compiled_model(tmp_path: Path, backend: str) -> None:
    plain, watched = (torch.compile(net(), backend=backend) for _ in range(2))
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2))
    with GradientProbe(watched, tmp_path / "run"):
        seen = train(watched, torch.optim.AdamW(watched.parameters(), lr=1e-2))
    assert_same(plain, watched)
    # The compiler's wrapper is no part of the names.
    prefix = "_orig_mod."
    assert all(name.startswith(prefix) for name in seen[0])
    check(
        tmp_path / "run",
        [{name.removeprefix(prefix): grad for name, grad in grads.items()} for grads in seen],
    )
