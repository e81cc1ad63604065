"""GradientMask on gradients of every nature, whole and in shards: cut at the exact threshold."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from deltalens import GradientMask
from tests.support.masked_training import assert_same_bits, seen_by
from tests.support.oracles import gmt
from tests.support.oracles.pairs import KINDS, make
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]

NAMES = ("a", "b.w", "z.9.v", "z.9.w", "z.10.w", "y.1.z.9.w")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCOPES = ("tensor", "layer", "global")

all_empty = pytest.mark.filterwarnings("ignore:GradientMask saw no optimizer step")


class Bare(nn.Module):
    """Parameters of these names, and nothing to do with them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(tensor))


@st.composite
def gradients(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Tensor]:
    """Some of them empty, of no dimension, or in columns."""
    found = {}
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
        size = draw(st.one_of(st.integers(0, 3), st.integers(0, 70), st.just(300)))
        made = make(draw(st.sampled_from(KINDS)), size, dtype, draw(st.integers(0, 1 << 16)))
        if size == 1 and draw(st.booleans()):
            made = made.reshape(())
        elif size % 4 == 0 and draw(st.booleans()):
            made = made.reshape(4, -1).t()
        found[name] = made
    return found


mask_ratios = st.decimals(0, "0.999", places=3).map(str)


def weights_beside(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Any bits."""
    return {name: make("any", g.numel(), g.dtype, 7).reshape(g.shape) for name, g in given.items()}


@all_empty
@repeatable(100)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(SCOPES), mask_ratios, st.booleans())
def test_whole(
    data: st.DataObject, dtype: torch.dtype, scope: str, ratio: str, update: bool
) -> None:
    given = data.draw(gradients(dtype))
    weights = weights_beside(given)
    model = Bare({name: weight.clone() for name, weight in weights.items()})
    for name, parameter in model.named_parameters():
        parameter.grad = given[name].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, weight_decay=0.1)
    seen = seen_by(optimizer, model)
    mask = GradientMask(model, ratio, scope=scope, apply_to="update" if update else "gradient")
    with mask:
        optimizer.step()
    kept = gmt.masks(given, ratio, scope)
    assert_same_bits(seen[0], gmt.masked(given, kept))
    if any(gradient.numel() for gradient in given.values()):
        assert mask.coverage() == gmt.coverage([kept])
        if float(ratio):
            assert mask.thresholds == gmt.thresholds(given, ratio, scope)
    if update:
        for name, parameter in model.named_parameters():
            stays = ~kept[name]
            assert_same_bits({name: parameter[stays]}, {name: weights[name][stays]})


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Of this process alone: what it has are shards all the same."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def sharded(tensors: dict[str, Tensor], mesh: DeviceMesh) -> dict[str, Tensor]:
    return {
        name: DTensor.from_local(tensor.clone(), mesh, [Shard(0)], run_check=False)
        for name, tensor in tensors.items()
    }


def local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def sharded_step(
    given: dict[str, Tensor], ratio: str, scope: str, apply_to: str, mesh: DeviceMesh
) -> tuple[dict[str, Tensor], dict[str, Tensor], GradientMask]:
    """Gradients inside a step, parameters after it, and the mask."""
    model = Bare(sharded(weights_beside(given), mesh))
    parts = sharded(given, mesh)
    for name, parameter in model.named_parameters():
        parameter.grad = parts[name]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, weight_decay=0.1)
    seen = seen_by(optimizer, model)
    with GradientMask(model, ratio, scope=scope, apply_to=apply_to) as mask:
        optimizer.step()
    found = {name: local(gradient) for name, gradient in seen[0].items()}
    return found, {n: local(p.detach()) for n, p in model.named_parameters()}, mask


@all_empty
@repeatable(50)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(SCOPES), mask_ratios, st.booleans())
def test_in_shards(
    mesh: DeviceMesh,
    data: st.DataObject,
    dtype: torch.dtype,
    scope: str,
    ratio: str,
    update: bool,
) -> None:
    given = {n: g if g.dim() else g.view(1) for n, g in data.draw(gradients(dtype)).items()}
    found, after, mask = sharded_step(given, ratio, scope, "update" if update else "gradient", mesh)
    kept = gmt.masks(given, ratio, scope)
    assert_same_bits(found, gmt.masked(given, kept))
    if any(gradient.numel() for gradient in given.values()):
        assert mask.coverage() == gmt.coverage([kept])
    if update:
        before = weights_beside(given)
        for name, value in after.items():
            stays = ~kept[name]
            assert_same_bits({name: value[stays]}, {name: before[name][stays]})


def test_thresholds_of_shards(mesh: DeviceMesh) -> None:
    given = {name: make("normal", 40, torch.float32, place) for place, name in enumerate(NAMES)}
    for scope in SCOPES:
        _, _, mask = sharded_step(given, "0.35", scope, "gradient", mesh)
        assert mask.thresholds == gmt.thresholds(given, "0.35", scope)


@pytest.mark.parametrize(
    ("entries", "ratio", "stay"),
    [
        (5, 0.5, 3),  # 2.5: halves to the even number
        (7, 0.5, 3),  # 3.5
        (10, 0.35, 6),  # 3.5, and below it in binary
        (10, 0.15, 8),  # 1.5, and below it in binary
        (10, 0.45, 6),  # 4.5, and above it in binary
        (1, 0.9, 1),  # one stays where none would
        (3, "0.999", 1),
    ],
)
def test_the_count_is_exact(entries: int, ratio: float | str, stay: int, mesh: DeviceMesh) -> None:
    given = {"a": torch.arange(1.0, entries + 1)}
    model = Bare({"a": torch.ones(entries)})
    model.get_parameter("a").grad = given["a"].clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = seen_by(optimizer, model)
    with GradientMask(model, ratio):
        optimizer.step()
    wanted = torch.where(given["a"] > entries - stay, given["a"], torch.zeros(entries))
    assert_same_bits(seen[0], {"a": wanted})
    found, _, _ = sharded_step(given, str(ratio), "tensor", "gradient", mesh)
    assert_same_bits(found, {"a": wanted})
