"""On a CUDA device a probe and a mask give what they give on the CPU, and wait for nothing."""

import math

import pytest
import torch
from torch import Tensor, nn

from deltalens import GradientMask
from deltalens.gradients import Gradient, GradientStep
from deltalens.gradients.ranked import rank_gradients
from deltalens.gradients.surveys import Survey, fetch_surveys
from deltalens.names import Scope
from deltalens.numerics.masks import PackedMask, compare
from deltalens.numerics.scratch import Scratch
from deltalens.probes.columns import QUANTILES
from tests.support.oracles.pairs import make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RATIOS = (0.2, 0.5, 0.9)


def measured(tensors: dict[str, Tensor], scope: Scope) -> list[Survey]:
    gradients = [
        Gradient(name, nn.Parameter(t, requires_grad=False), t, t.numel(), None)
        for name, t in tensors.items()
    ]
    step = GradientStep(torch.optim.SGD([torch.zeros(())]), 0, gradients)
    with rank_gradients(step, gradients, scope, Scratch(), list(QUANTILES.values())) as found:
        return found.survey(RATIOS)


@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_survey_is_the_same_and_waits_once(dtype: torch.dtype, scope: Scope) -> None:
    tensors = {f"a.{i}.w": make("grid", 100_003 + i, dtype, i) for i in range(3)}
    here = {one.gradient.name: one for one in measured(tensors, scope)}
    there = {name: tensor.cuda() for name, tensor in tensors.items()}
    measured(there, scope)  # Constants are sent once.
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = measured(there, scope)
        rows = [
            compare(top.mask, [top.mask, None, None], PackedMask(top.mask.size, "cuda"))
            for one in found
            for top in one.tops.values()
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    counts = fetch_surveys(found, rows)
    assert all(row[0] == row[1] == row[4] for row in counts)
    for one in found:
        other = here[one.gradient.name]
        assert (one.stats.octaves == other.stats.octaves).all()
        assert one.stats.quantiles == other.stats.quantiles
        assert math.isclose(one.stats.square_sum, other.stats.square_sum, rel_tol=1e-6)
        for ratio in RATIOS:
            assert one.tops[ratio].threshold == other.tops[ratio].threshold
            mask = one.tops[ratio].mask.unpacked().cpu()
            assert torch.equal(mask, other.tops[ratio].mask.unpacked())


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_is_the_same(dtype: torch.dtype, apply_to: str) -> None:
    models = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 7)).to(dtype).to(device)
        for place, parameter in enumerate(model.parameters()):
            gradient = make("grid", parameter.numel(), dtype, place)
            parameter.grad = gradient.view(parameter.shape).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with GradientMask(model, 0.7, apply_to=apply_to) as mask:
            optimizer.step()
        models.append(model.cpu())
        assert mask.coverage() > 0.2
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad != 0, other.grad != 0)
        assert torch.equal(one, other)
