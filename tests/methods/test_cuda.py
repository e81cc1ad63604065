"""Masks of weights on an accelerator: the same ones as on the CPU, and the twin's gradients."""

import pytest
import torch

from deltalens import MaskTuning
from deltalens.methods.weight_masks import l1_weight_mask
from tests.support.mft_models import RULES, batches, llama, loss_of, named_scores, rule_of, tie
from tests.support.oracles import mft

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_steps_are_the_twins(rule: dict[str, str]) -> None:
    model, plain = llama(torch.float64).cuda(), llama(torch.float64).cuda()
    tuning = MaskTuning(model, **rule_of(rule, "0.3"))
    scores, data = named_scores(model), batches()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in scores.values():
            grid = torch.empty(parameter.shape, dtype=parameter.dtype)
            tie(grid, generator)
            with torch.no_grad():
                parameter.copy_(grid)
                parameter.grad = None
        ids = next(data).cuda()
        loss_of(model, ids).backward()
        here = {name: s.detach().cpu() for name, s in scores.items()}
        for name, mask in tuning.masks().items():
            wanted = mft.mask_of(here[f"{name}.weight"], f"{name}.weight", ratio="0.3", **rule)
            assert torch.equal(mask.cpu(), wanted), name
        on_cpu = {name: s.detach().cpu() for name, s in scores.items()}
        _, gradients = mft.gradients(plain.cpu(), on_cpu, loss_of, ids.cpu(), ratio="0.3", **rule)
        for name, parameter in scores.items():
            torch.testing.assert_close(parameter.grad.cpu(), gradients[name], msg=name)  # type: ignore[union-attr]
    tuning.merge()


def test_l1_masks_are_those_of_the_cpu() -> None:
    here, there = (l1_weight_mask(m).masks() for m in (llama(), llama().cuda()))
    for name, mask in here.items():
        assert torch.equal(there[name].cpu(), mask), name
