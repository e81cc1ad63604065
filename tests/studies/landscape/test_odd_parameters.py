"""Parameters that no line leads through stay as they are, and are named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.quadratics import Odd, quadratics, scan

PLANES: dict[str, dict[str, Any]] = {
    "line": {"plane": "line", "grid": 5},
    **{
        f"random, {how}": {"plane": "random", "grid": "3x3", "normalize": how}
        for how in ("filter", "layer", "model")
    },
    "hessian": {"plane": "hessian", "grid": "3x3"},
}


def odd(count: int) -> list[Odd]:
    torch.manual_seed(0)
    return [Odd(one.point().detach(), one.curvature, one.slope) for one in quadratics(count)]


@pytest.mark.parametrize("spec", PLANES.values(), ids=PLANES)
def test_complex_and_empty_ones_stay_and_are_named(tmp_path: Path, spec: dict[str, Any]) -> None:
    origin, other = odd(2)
    seen: list[dict[str, torch.Tensor]] = []

    def metric(model: Any) -> dict[str, float]:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"loss": float(model.loss())}

    before = {name: p.detach().clone() for name, p in origin.named_parameters()}
    others = [other] if spec["plane"] == "line" else []
    record = scan(origin, tmp_path / "study", others=others, metric=metric, **spec)
    assert record.facts["notes"] == [
        "these parameters do not move: phase (complex64), empty (no entries)"
    ]
    assert record.cells[record.cells.metric == "loss"].value.notna().all()
    for point in seen:
        assert torch.equal(point["phase"], before["phase"])
    assert any(not torch.equal(point["matrix"], before["matrix"]) for point in seen)
    for name, value in origin.named_parameters():
        assert torch.equal(value, before[name]), name


def test_on_a_line_the_loss_is_that_of_the_point(tmp_path: Path) -> None:
    origin, other = odd(2)
    record = scan(origin, tmp_path / "study", others=[other], plane="line", grid=3, span="0:1")
    ends = (torch.cat([p.reshape(-1) for p in moving(one)]) for one in odd(2))
    far = float(torch.dist(*ends))  # the axis is a distance
    losses = {}
    for row in record.cells.itertuples():
        mixed = odd(2)[0]
        with torch.no_grad():
            for p, q in zip(moving(mixed), moving(other), strict=True):
                p.add_(q - p, alpha=row.a / far)
            losses[row.a] = float(mixed.loss().detach())
        assert row.value == pytest.approx(losses[row.a], rel=1e-9)
    assert len(set(losses.values())) == 4


def moving(model: Odd) -> list[torch.Tensor]:
    return [p.data for p in model.parameters() if p.dtype == torch.float64 and p.numel()]
