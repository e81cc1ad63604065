"""Run by torchrun in two processes, as a module: sparse values under DDP, beside one process.

Usage: -m tests.support.distributed.sparse_values
"""

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from deltalens import DeltaLensError, SparseTuning
from tests.support.sparse_models import Net

STEPS = 6


def data(step: int) -> Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().mean()


def trained(parallel: bool, every: int | None) -> tuple[Net, SparseTuning]:
    """A net after some steps: on its own rows in each process, or on all of them."""
    torch.manual_seed(0)
    net = Net()
    rank = dist.get_rank()
    tuning = SparseTuning(
        net,
        0.1,
        metric="gradient",
        # Each process would choose other entries: the first one's count.
        batches=lambda number: [{"input": data(1000 + number + (rank if parallel else 0))}],
        loss=lambda model, batch: loss_of(model, batch["input"]),
        scope="tensor",
        targets=["first", "second"],
        refresh_every=every,
    )
    model = DistributedDataParallel(net) if parallel else net
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    for step in range(STEPS):
        rows = data(step)
        loss_of(model, rows[4 * rank : 4 * rank + 4] if parallel else rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, tuning


def run() -> None:
    """All checks; any failure ends the process."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for every in (None, 3):
        net, tuning = trained(True, every)
        for weight in (net.first.weight, net.second.weight):
            first = weight.detach().clone()
            dist.broadcast(first, 0)
            assert torch.equal(first, weight.detach()), "the processes have parted"
        for flat in tuning.indices().values():
            first_flat = flat.clone()
            dist.broadcast(first_flat, 0)
            assert torch.equal(first_flat, flat), "the processes train other entries"
        if rank == 0:
            alone, other = _alone(every)
            for name, flat in other.indices().items():
                assert torch.equal(flat, tuning.indices()[name]), name
            for own, single in zip(tuning.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(own, single, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(net.first.weight, alone.first.weight)
        dist.barrier()
    _refused()
    dist.destroy_process_group()


def _alone(every: int | None) -> tuple[Net, SparseTuning]:
    """The same in this process alone, which must not talk to the other one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "is_initialized", lambda: False)
        return trained(False, every)


def _refused() -> None:
    net = Net()
    with pytest.raises(DeltaLensError, match=r"in 2 processes: DDP needs every layer to keep"):
        SparseTuning(net, 0.1, metric="magnitude", targets=["first"], refresh_every=2)
    kept = {"scope": "tensor", "ties": "keep", "targets": ["first"]}
    with pytest.raises(DeltaLensError, match=r"ties='keep' in 2 processes"):
        SparseTuning(net, 0.1, metric="magnitude", refresh_every=2, **kept)
    sharded = Net()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(DeltaLensError, match="sharded"):
        SparseTuning(sharded, 0.1, metric="magnitude", targets=["first"])
    late = Net()
    SparseTuning(late, 0.1, metric="magnitude", targets=["first"])
    fully_shard(late, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(DeltaLensError, match="its values were replaced after SparseTuning"):
        loss_of(late, data(0))
    wrapped = DistributedDataParallel(Net())
    with pytest.raises(DeltaLensError, match="wrapped"):
        SparseTuning(wrapped, 0.1, metric="magnitude", targets=["first"])


if __name__ == "__main__":
    run()
