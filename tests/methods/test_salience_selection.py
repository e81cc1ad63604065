"""The top of a metric: exact counts in every scope, ties by hash or all kept."""

import math
from typing import Any

import pytest
import torch

from deltalens import DeltaLensError, Salience
from deltalens.names import unit_of

SHAPES = {
    "layers.0.q.weight": (8, 8),
    "layers.0.v.weight": (4, 8),
    "layers.1.q.weight": (8, 8),
    "head.weight": (5, 8),
}


def scored(signed: bool = False, **scores: torch.Tensor) -> Salience:
    draw = torch.Generator().manual_seed(5)
    drawn = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    return Salience("force" if signed else "snip", scores or drawn, signed, 1, 1)


@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
@pytest.mark.parametrize("density", ["0.1", "0.5", "0.33", 1])
def test_each_ranked_unit_keeps_its_density(scope: Any, density: Any) -> None:
    kept, counts, sizes = scored().indices(density, scope=scope), {}, {}
    for name, indices in kept.items():
        assert indices.dtype == torch.int64
        assert bool((indices.diff() > 0).all())
        unit = unit_of(name, scope)
        counts[unit] = counts.get(unit, 0) + len(indices)
        sizes[unit] = sizes.get(unit, 0) + math.prod(SHAPES[name])
    assert counts == {unit: round(float(density) * size) for unit, size in sizes.items()}


@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
@pytest.mark.parametrize("count", [7, 41, 99, 200])
def test_a_count_is_met_to_the_last_weight(scope: Any, count: int) -> None:
    kept = scored().indices(count=count, scope=scope)
    assert sum(map(len, kept.values())) == count


@pytest.mark.parametrize("signed", [False, True])
def test_the_top_is_ranked_by_size_or_by_value(signed: bool) -> None:
    salience = scored(signed)
    flat = torch.cat([scores.flatten() for scores in salience.scores.values()])
    kept = salience.indices("0.1")
    found = torch.cat([salience.scores[name].flatten()[indices] for name, indices in kept.items()])
    ranked = flat if signed else flat.abs()
    wanted = ranked.sort(descending=True).values[: len(found)]
    assert torch.equal((found if signed else found.abs()).sort(descending=True).values, wanted)


def test_ties_go_by_hash_or_all_stay() -> None:
    scores = torch.tensor([3.0, 1.0, 1.0, 1.0, 0.0])
    salience = scored(weight=scores)
    by_hash = {tuple(salience.indices("0.4", seed=seed)["weight"].tolist()) for seed in range(20)}
    assert by_hash == {(0, 1), (0, 2), (0, 3)}
    assert salience.indices("0.4", ties="keep")["weight"].tolist() == [0, 1, 2, 3]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "density 0": ({"density": 0}, r"density 0 is outside \(0, 1\]"),
    "density 2": ({"density": 2}, r"density 2 is outside"),
    "density NaN": ({"density": math.nan}, "is not a number"),
    "too small": ({"density": "0.001"}, r"density 0.001 leaves no weight(.|\n)*all: 200 weights"),
    "too small for one": (
        {"density": "0.005", "scope": "layer"},
        r"leaves no weight(.|\n)*layers.0: 96 weights(.|\n)*head.weight: 40 weights",
    ),
    "count 0": ({"count": 0}, "count 0: must be from 1 to 200"),
    "too many": ({"count": 201}, "count 201: must be from 1 to 200"),
    "neither": ({}, "either density or count"),
    "both": ({"density": 0.1, "count": 3}, "either density or count"),
    "scope": ({"density": 0.1, "scope": "all"}, "scope 'all': choose one of"),
    "ties": ({"density": 0.1, "ties": "drop"}, "ties='drop': choose hash or keep"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_bad_counts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        scored().indices(**given)


@pytest.mark.bad_input
def test_a_nan_is_named() -> None:
    with pytest.raises(DeltaLensError, match="broken: holds NaN"):
        scored(True, fine=torch.ones(3), broken=torch.full((3,), math.nan)).indices(0.5)
