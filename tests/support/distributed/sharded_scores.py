"""Run by torchrun in two processes, as a module: Mask Fine-Tuning under DDP and FSDP2, beside the
twin on whole scores and weights.

Usage: -m tests.support.distributed.sharded_scores
"""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from deltalens import DeltaLensError, MaskTuning, apply_masks
from deltalens.methods.mask_scores import Rule
from tests.support.distributed.sharded_mask import assert_same, loss_of, net, whole
from tests.support.mft_models import named_scores, rule_of, tie
from tests.support.oracles import mft
from tests.support.oracles.pairs import same_bits

STEPS = 6
RULES: dict[str, dict[str, Any]] = {
    "magnitude": {},
    "value": {"rank_by": "value"},
    "threshold": {"threshold": -0.01},
}


def build(kind: str, rule: dict[str, Any]) -> tuple[nn.Module, nn.Module, MaskTuning]:
    """The model (its layers' five rows cannot be shared evenly), what is called, and the masks."""
    made = net()
    tuning = MaskTuning(made, include=r"layers|head", **rule_of(rule, 0.3))
    generator = torch.Generator().manual_seed(0)
    for scores in named_scores(made).values():
        tie(scores, generator)
    if kind == "ddp":
        return made, DistributedDataParallel(made), tuning
    mesh = init_device_mesh("cpu", (2,))
    for layer in made.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    return made, made, tuning


def data() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randint(0, 7, (4, 3), generator=generator) for _ in "01"] for _ in range(STEPS)]


def scores_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(scores) for name, scores in named_scores(model).items()}


def check_masks(tuning: MaskTuning, scores: dict[str, Tensor], rule: dict[str, Any]) -> None:
    for name, mask in tuning.masks().items():
        wanted = mft.mask_of(scores[f"{name}.weight"], f"{name}.weight", ratio="0.3", **rule)
        assert torch.equal(mask, wanted), name
        everywhere = mask.int()
        dist.all_reduce(everywhere)
        assert torch.equal(everywhere, 2 * mask.int()), name


def check_training(kind: str, rule: dict[str, Any]) -> None:
    model, called, tuning = build(kind, rule)
    optimizer = torch.optim.AdamW(named_scores(model).values(), lr=1e-2)
    plain, selected = net(), []
    select = Rule.select
    Rule.select = lambda one, *args: (selected.append(one.name), select(one, *args))[1]  # type: ignore[method-assign]
    try:
        for step, batches in enumerate(data()):
            scores = scores_of(model)
            check_masks(tuning, scores, rule)
            optimizer.zero_grad()
            for _ in range(2):
                loss_of(called, batches[dist.get_rank()]).backward()
            assert len(selected) == (step + 1) * len(tuning.layers), (step, selected)
            both = [
                mft.gradients(plain, scores, loss_of, ids, ratio="0.3", **rule)[1]
                for ids in batches
            ]
            for name, parameter in named_scores(model).items():
                wanted = both[0][name] + both[1][name]
                torch.testing.assert_close(whole(parameter.grad), wanted, msg=name)  # type: ignore[arg-type]
            optimizer.step()
    finally:
        Rule.select = select  # type: ignore[method-assign]
    scores = scores_of(model)
    masks = {f"{n}.weight": mask for n, mask in tuning.masks().items()}
    check_masks(tuning, scores, rule)
    check_state(model, tuning, masks, rule)
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        dist.broadcast_object_list(shared)
        path = Path(shared[0]) / "masks.safetensors"
        tuning.save(path)
        dist.barrier()
        found = apply_masks(net(), path)
        dist.barrier()
    if kind == "fsdp2":
        with pytest.raises(DeltaLensError, match="the model is sharded"):
            tuning.merge()
        assert tuning.active
    else:
        assert_same(dict(tuning.merge().named_parameters()), dict(found.named_parameters()))
    for name, value in plain.named_parameters():
        wanted = mft.masked(value, masks[name]) if name in masks else value
        assert same_bits(found.get_parameter(name).detach(), wanted.detach()), name


def check_state(
    model: nn.Module, tuning: MaskTuning, masks: dict[str, Tensor], rule: dict[str, Any]
) -> None:
    """A checkpoint made by either way is the masked model's."""
    options = StateDictOptions(full_state_dict=True)
    full = get_model_state_dict(model, options=options)
    plain = dict(net().named_parameters())
    for state in (model.state_dict(), full if dist.get_rank() == 0 or full else {}):
        for name, mask in masks.items():
            if state:
                assert same_bits(whole(state[name]), mft.masked(plain[name].detach(), mask)), name
    if any(isinstance(p, DTensor) for p in model.parameters()):
        before = {name: whole(p) for name, p in model.named_parameters()}
        state = model.state_dict()
        own = {name: s.detach().clone() for name, s in state.items() if name.endswith("scores")}
        model.load_state_dict(state | {name: 0.01 - scores for name, scores in own.items()})
        check_masks(tuning, scores_of(model), rule)
        model.load_state_dict(state | own)
        check_masks(tuning, scores_of(model), rule)
        assert_same({name: whole(p) for name, p in model.named_parameters()}, before)


def main() -> None:
    dist.init_process_group("gloo")
    for kind in ("ddp", "fsdp2"):
        for rule in RULES.values():
            check_training(kind, rule)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
