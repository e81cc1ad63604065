"""Run by torchrun in two processes: a probe under DDP or FSDP2, beside one on the whole gradients.

Usage: -m tests.support.distributed.sharded_probe {ddp,fsdp2} OUT
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from deltalens import GradientProbe

STEPS = 4


class Net(nn.Module):
    """Rows that two processes cannot share evenly; a bias that one of them has nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(2))
        self.head = nn.Linear(5, 1)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        out: Tensor = self.head(hidden)
        return out


def main(kind: str, out: Path) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = Net()
    model: nn.Module = net
    if kind == "ddp":
        model = DistributedDataParallel(net)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for layer in net.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    twin = Net()
    whole = torch.optim.SGD(twin.parameters(), lr=0.0)
    data = torch.Generator().manual_seed(dist.get_rank())
    for scope in ("tensor", "layer", "global"):
        probe = GradientProbe(model, out / scope, scope=scope, updates=True).attach()
        other = GradientProbe(twin, out / f"{scope}-whole", scope=scope).attach()
        for _ in range(STEPS):
            ids = torch.randint(0, 7, (4, 3), generator=data)
            model(ids).square().mean().backward()
            for (_, to), (_, parameter) in zip(
                twin.named_parameters(), model.named_parameters(), strict=True
            ):
                grad = parameter.grad
                assert grad is not None
                to.grad = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
            whole.step()
            optimizer.step()
            optimizer.zero_grad()
        other.detach()
        probe.detach()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
