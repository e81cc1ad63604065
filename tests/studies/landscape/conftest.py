"""Fixtures that several of the landscape's tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.checkpoint_pairs import Kind, fine_tune
from tests.support.models import FAMILIES, initialized, save
from tests.support.quadratics import ROWS
from tests.support.runs import write_rows


@dataclass(frozen=True)
class Three:
    """Checkpoints that span a plane, their base, and rows to measure them on."""

    origin: Path
    b: Path
    c: Path
    base: Path
    train: Path
    test: Path

    @property
    def others(self) -> list[Path]:
        """B and C."""
        return [self.b, self.c]

    @property
    def data(self) -> list[Path]:
        """Both files."""
        return [self.train, self.test]


def write_three(folder: Path, kind: Kind) -> Three:
    """A base, a fine-tune of it, and two that begin at the fine-tune."""
    model = initialized(lambda: FAMILIES[kind.family](kind.tied), seed=1).to(kind.dtype)
    places = {name: folder / name for name in ("base", "ft", "continued", "masked")}
    save(model, places["base"])
    fine_tune(model, seed=2, scale=0.05)
    save(model, places["ft"])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, seed in (("continued", 3), ("masked", 4)):
        model.load_state_dict(state)
        fine_tune(model, seed=seed, scale=0.03)
        save(model, places[name])
    train = write_rows(folder / "train.jsonl", ROWS[:5])
    test = write_rows(folder / "test.jsonl", ROWS[5:])
    return Three(places["ft"], places["continued"], places["masked"], places["base"], train, test)


KINDS = [
    Kind("llama", torch.float32),
    Kind("llama", torch.bfloat16),
    Kind("llama", torch.float32, tied=True),
    Kind("llama", torch.bfloat16, tied=True),
]


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Three:
    """Of an untied Llama in fp32."""
    return write_three(tmp_path_factory.mktemp("three"), KINDS[0])


@pytest.fixture(scope="session", params=KINDS, ids=str)
def any_three(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Kind, Three]:
    """Of Llamas in fp32 and bf16, tied and not."""
    return request.param, write_three(tmp_path_factory.mktemp(str(request.param)), request.param)
