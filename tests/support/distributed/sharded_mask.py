"""Run by torchrun in two processes, as a module: masks under DDP or FSDP2, beside Algorithm 1 on
the whole gradients.

Usage: -m tests.support.distributed.sharded_mask
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from deltalens import DeltaLensError, GradientMask, HalfFreeze, RandomMask
from tests.support.distributed.sharded_probe import Net
from tests.support.oracles import gmt
from tests.support.oracles.pairs import same_bits

STEPS, LEARNING_RATE = 20, 0.1
RATIOS = (0.2, "0.35", 0, 0.5, 0.9)
Tensors = dict[str, Tensor]


def ratio_at(step: int) -> float | str:
    return RATIOS[step % len(RATIOS)]


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def build(kind: str) -> tuple[Net, nn.Module]:
    """The model, and what is called: the same, or its wrapper."""
    made = net()
    if kind == "ddp":
        return made, DistributedDataParallel(made)
    mesh = init_device_mesh("cpu", (2,))
    for layer in made.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    return made, made


def data() -> list[list[Tensor]]:
    """The micro-batches of each step: one a process."""
    generator = torch.Generator().manual_seed(0)
    return [[torch.randint(0, 7, (4, 3), generator=generator) for _ in "01"] for _ in range(STEPS)]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return (model(ids) - ids[..., None] / 4).square().mean()


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


class Run:
    """A sharded training that knows its whole gradients before and inside each step."""

    def __init__(self, kind: str, make: Any) -> None:
        self.net, self.model = build(kind)
        self.optimizer = make(self.model.parameters())
        self.seen: list[Tensors] = []
        inner = self.optimizer._init_group

        def watching(*arguments: Any) -> Any:
            self.seen.append(self.gradients())
            return inner(*arguments)

        self.optimizer._init_group = watching

    def gradients(self) -> Tensors:
        return {n: whole(p.grad) for n, p in self.net.named_parameters() if p.grad is not None}

    def parameters(self) -> Tensors:
        return {n: whole(p) for n, p in self.net.named_parameters()}

    def backward(self, batches: list[Tensor]) -> Tensors:
        self.optimizer.zero_grad()
        loss_of(self.model, batches[dist.get_rank()]).backward()
        return self.gradients()


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert same_bits(found[name], tensor), name


def check_algorithm_1(kind: str, scope: str) -> None:
    run = Run(kind, lambda ps: torch.optim.SGD(ps, lr=LEARNING_RATE))
    covered = []
    with GradientMask(run.model, schedule=ratio_at, scope=scope) as mask:
        for step, batches in enumerate(data()):
            given = run.backward(batches)
            run.optimizer.step()
            kept = gmt.masks(given, ratio_at(step), scope)
            assert_same(run.seen[-1], gmt.masked(given, kept))
            covered.append(kept)
    # Each process knows its own shards.
    own = sum(
        (p.to_local() if isinstance(p, DTensor) else p).numel() for p in run.model.parameters()
    )
    shares = torch.tensor([mask.coverage() * own, own], dtype=torch.float64)
    dist.all_reduce(shares)
    assert math.isclose(shares[0] / shares[1], gmt.coverage(covered))
    twin = net()
    gmt.train(twin, loss_of, data(), LEARNING_RATE, ratio_at, scope)
    for name, parameter in twin.named_parameters():
        away = (run.parameters()[name] - parameter.detach()).norm() / parameter.detach().norm()
        assert away <= 1e-5, (name, float(away))
        assert not torch.equal(parameter, net().get_parameter(name)), name


def check_update(kind: str, scope: str) -> None:
    run = Run(kind, lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1))
    with GradientMask(run.model, 0.5, scope=scope, apply_to="update"):
        for batches in data()[:6]:
            given, before = run.backward(batches), run.parameters()
            run.optimizer.step()
            kept = gmt.masks(given, 0.5, scope)
            assert_same(run.seen[-1], gmt.masked(given, kept))
            for name, after in run.parameters().items():
                assert torch.equal(after[~kept[name]], before[name][~kept[name]]), name
                moving = kept[name] & (given[name] != 0)
                assert (after != before[name])[moving].all(), name


def check_random(kind: str, draw: str) -> None:
    run, alone = Run(kind, lambda ps: torch.optim.SGD(ps, lr=LEARNING_RATE)), net()
    other = torch.optim.SGD(alone.parameters(), lr=0.0)
    spec: Any = {"mask_ratio": 0.4, "seed": 3, "draw": draw}
    with RandomMask(run.model, **spec), RandomMask(alone, **spec):
        for batches in data()[:3]:
            for name, gradient in run.backward(batches).items():
                alone.get_parameter(name).grad = gradient
            run.optimizer.step()
            other.step()
            wanted = {n: p.grad for n, p in alone.named_parameters() if p.grad is not None}
            assert_same(run.seen[-1], wanted)


def check_half(kind: str) -> None:
    run = Run(kind, lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1))
    before = run.parameters()
    with HalfFreeze(run.model, seed=1) as freeze:
        for batches in data()[:3]:
            run.backward(batches)
            run.optimizer.step()
    still = {n for n, value in run.parameters().items() if torch.equal(value, before[n])}
    assert still == freeze.frozen
    assert still == HalfFreeze(net(), seed=1).frozen


def check_not_finite(kind: str, on_nonfinite: str) -> None:
    """The NaN lies in what the first process has; all do the same about it."""
    run = Run(kind, lambda ps: torch.optim.AdamW(ps, lr=1e-2))
    with GradientMask(run.model, 0.5, on_nonfinite=on_nonfinite):
        for number, batches in enumerate(data()[:3]):
            run.backward(batches)
            if number == 1:
                before = run.parameters()
                grad = run.net.head.bias.grad
                assert grad is not None
                local = grad.to_local() if isinstance(grad, DTensor) else grad
                local.fill_(math.nan)
            given = run.gradients()
            if number == 1 and on_nonfinite == "raise":
                message = r"step 1: the gradient is not finite(.|\n)*head\.bias"
                with pytest.raises(DeltaLensError, match=message):
                    run.optimizer.step()
            else:
                run.optimizer.step()
            if number == 1 and on_nonfinite != "pass":
                assert_same(run.parameters(), before)
                continue
            kept = gmt.masks({n: g for n, g in given.items() if not g.isnan().any()}, 0.5)
            kept |= {n: torch.full(g.shape, True) for n, g in given.items() if n not in kept}
            assert_same(run.seen[-1], gmt.masked(given, kept))
            if number == 1:
                return


def main() -> None:
    dist.init_process_group("gloo")
    for kind in ("ddp", "fsdp2"):
        for scope in ("tensor", "layer", "global"):
            check_algorithm_1(kind, scope)
        check_update(kind, "layer")
        for draw in ("exact", "bernoulli"):
            check_random(kind, draw)
        check_half(kind)
        for on_nonfinite in ("raise", "skip", "pass"):
            check_not_finite(kind, on_nonfinite)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
