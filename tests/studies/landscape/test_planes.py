"""On a quadratic every plane's loss is known: each point of a scan is compared with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deltalens.studies.landscape.directions import RandomDirection, random_directions
from deltalens.studies.landscape.worker import DIRECTIONS
from deltalens.studies.slots import slots_of_module
from deltalens.studies.weights import HeldWeights
from tests.support.quadratics import SIZE, Quadratic, closed_form, quadratics, scan

EXACT = {"rtol": 0, "atol": 1e-6}


def flat(model: Quadratic) -> Tensor:
    return model.point().detach().clone()


def gram_schmidt(first: Tensor, second: Tensor) -> list[Tensor]:
    one = first / first.norm()
    two = second - (second @ one) * one
    return [one, two / two.norm()]


@pytest.mark.parametrize("low_memory", [False, True])
def test_checkpoint_plane_is_the_closed_form_and_orthonormal(
    tmp_path: Path, low_memory: bool
) -> None:
    origin, b, c, base = quadratics(4)
    record = scan(
        origin, tmp_path / "s", others=[b, c], base=base, grid="3x5", low_memory=low_memory
    )
    directions = gram_schmidt(flat(b) - flat(origin), flat(c) - flat(origin))
    assert len(record.cells) == 4 + 15
    np.testing.assert_allclose(
        record.cells["value"], closed_form(origin, directions, record.cells), **EXACT
    )


def test_marks_of_a_checkpoint_plane_are_where_geometry_says(tmp_path: Path) -> None:
    origin, b, c, base = quadratics(4)
    record = scan(origin, tmp_path / "s", others=[b, c], base=base, grid="3x5")
    marks = {mark["role"]: mark for mark in record.facts["plane"]["marks"]}
    x, y, z = (flat(model) - flat(origin) for model in (b, c, base))
    one, two = gram_schmidt(x, y)
    for role, vector in (("b", x), ("c", y), ("base", z)):
        inside = torch.stack([vector @ one, vector @ two])
        assert marks[role]["a"] == pytest.approx(float(inside[0]), abs=1e-9)
        assert marks[role]["b"] == pytest.approx(float(inside[1]), abs=1e-9)
        outside = math.sqrt(max(0.0, float(vector @ vector - inside @ inside)))
        assert marks[role]["distance"] == pytest.approx(outside, abs=1e-6)
    assert marks["c"]["b"] > 0
    for axis, (low, high) in zip("ab", record.facts["plane"]["ranges"], strict=True):
        assert all(low < mark[axis] < high for mark in marks.values())


def test_line_is_the_closed_form_and_its_barrier_the_parabolas(tmp_path: Path) -> None:
    from deltalens.reports.landscape import summarize_landscape

    origin, b = quadratics(2)
    record = scan(origin, tmp_path / "s", others=[b], grid=31)
    way = flat(b) - flat(origin)
    expected = closed_form(origin, [way / way.norm()], record.cells)
    np.testing.assert_allclose(record.cells["value"], expected, **EXACT)
    assert set(record.cells["b"]) == {0.0}
    found = summarize_landscape(record).data[0].barrier
    # Of t -> f(t) - line(t) = -t (1 - t) w H w / 2, the top is in the middle, if it bulges.
    bulge = -float(way @ origin.curvature @ way) / 8
    assert found is not None
    assert found.height == pytest.approx(max(0.0, bulge), rel=0.02)
    if bulge > 0:
        assert found.at == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("normalize", ["filter", "layer", "model"])
@pytest.mark.parametrize("grid", ["3x5", "7"])
def test_random_plane_is_the_closed_form(tmp_path: Path, normalize: str, grid: str) -> None:
    (origin,) = quadratics(1)
    record = scan(origin, tmp_path / "s", grid=grid, normalize=normalize, seed=3, plane="random")
    axes = len(grid.split("x"))
    directions = drawn(origin, axes, 3, normalize)
    expected = closed_form(origin, directions, record.cells)
    np.testing.assert_allclose(record.cells["value"], expected, **EXACT)
    again = scan(
        origin,
        tmp_path / "low",
        grid=grid,
        normalize=normalize,
        seed=3,
        plane="random",
        low_memory=True,
    )
    assert list(again.cells["value"]) == list(record.cells["value"])


def drawn(model: Quadratic, axes: int, seed: int, normalize: str) -> list[Tensor]:
    """Random directions, each as one vector."""
    slots = slots_of_module(model, None, None)
    weights = HeldWeights({slot.name: slot.view for slot in slots})
    made = []
    for direction in random_directions(weights, slots, axes, seed, normalize, map):
        pieces = [torch.empty(slot.size, dtype=slot.work) for slot in slots]
        for slot, piece in zip(slots, pieces, strict=True):
            direction.fill(slot, piece)
        made.append(torch.cat(pieces))
    return made


def test_filter_normalized_directions_have_the_filters_norms_and_leave_biases(
    tmp_path: Path,
) -> None:
    (model,) = quadratics(1)
    one, two = drawn(model, 2, 0, "filter")
    assert float(one @ two) == pytest.approx(0, abs=1e-12)
    for direction in (one, two):
        rows, bias, last = direction[:6].reshape(2, 3), direction[6:9], direction[9:]
        torch.testing.assert_close(rows.norm(dim=1), model.matrix.detach().norm(dim=1))
        assert not bias.any(), "one dimension: no filter, it does not move"
        torch.testing.assert_close(last.norm(), model.last.weight.detach().norm())
    for seed, place in ((1, 0), (0, 1)):
        assert not torch.equal(drawn(model, 2, seed, "filter")[place], one)


def test_layer_and_model_normalized_directions_have_those_norms() -> None:
    (model,) = quadratics(1)
    for direction in drawn(model, 2, 0, "layer"):
        torch.testing.assert_close(direction[:6].norm(), model.matrix.detach().norm())
        assert not direction[6:9].any()
    one, two = drawn(model, 2, 0, "model")
    assert float(one @ two) == pytest.approx(0, abs=1e-9)
    for direction in (one, two):
        torch.testing.assert_close(direction.norm(), flat(model).norm())
        assert direction[6:9].all(), "norms and biases move too"


def test_second_filter_of_one_entry_does_not_move() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 1))
    model = torch.nn.Module()
    model.register_parameter("w", weight)
    slots = slots_of_module(model, None, None)
    direction = RandomDirection(HeldWeights({"w": weight}), 0, 1, "filter", None)
    out = torch.ones(4)
    direction.fill(slots[0], out)
    assert not out.any()


@pytest.mark.parametrize("grid", ["3x5", "6"])
def test_trajectory_is_the_closed_form_of_a_principal_component_analysis(
    tmp_path: Path, grid: str
) -> None:
    last, *earlier = quadratics(5)
    record = scan(last, tmp_path / "s", others=earlier, plane="trajectory", grid=grid)
    axes = len(grid.split("x"))
    points = torch.stack([flat(model) for model in (last, *earlier)])
    _, sizes, vectors = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    explained = (sizes**2 / (sizes**2).sum())[:axes]
    found = record.facts["plane"]["found"]["explained"]
    np.testing.assert_allclose(found, explained, rtol=1e-9)
    directions = []
    for place in range(axes):
        sign = -1 if (flat(earlier[0]) - flat(last)) @ vectors[place] > 0 else 1
        directions.append(sign * vectors[place])
    expected = closed_form(last, directions, record.cells)
    on_grid = (record.cells["mark"] == "grid") | (record.cells["mark"] == "origin")
    np.testing.assert_allclose(record.cells["value"], expected, **EXACT)
    assert on_grid.sum() == math.prod(map(int, grid.split("x"))) + 1


def test_hessian_plane_is_the_closed_form_with_the_true_eigenvalues(tmp_path: Path) -> None:
    (model,) = quadratics(1)
    record = scan(model, tmp_path / "s", plane="hessian", grid="3x5")
    values, vectors = torch.linalg.eigh(model.curvature)
    found = record.facts["plane"]["found"]["eigenvalues"]
    np.testing.assert_allclose(found, values.flip(0)[:2], rtol=1e-4)
    stored = load_file(tmp_path / "s" / DIRECTIONS)
    names = [name for name, _ in model.named_parameters()]
    directions = [torch.cat([stored[f"{k}/{n}"].reshape(-1) for n in names]) for k in range(2)]
    for place, direction in enumerate(directions):
        assert abs(float(direction @ vectors[:, -1 - place])) == pytest.approx(1, abs=1e-6)
    expected = closed_form(model, directions, record.cells)
    np.testing.assert_allclose(record.cells["value"], expected, **EXACT)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hessian_leaves_what_is_excluded_out(tmp_path: Path) -> None:
    (model,) = quadratics(1)
    record = scan(model, tmp_path / "s", plane="hessian", grid="3x3", exclude="bias")
    kept = [place for place in range(SIZE) if place not in (6, 7, 8)]
    values = torch.linalg.eigvalsh(model.curvature[kept][:, kept]).flip(0)
    found = record.facts["plane"]["found"]["eigenvalues"]
    np.testing.assert_allclose(found, values[:2], rtol=1e-4)
    assert model.bias.requires_grad, "as it was"
