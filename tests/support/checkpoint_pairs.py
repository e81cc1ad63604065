"""Fixtures that several of the studies' tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.families import Kind, Pair, write_pair

PairOf = Callable[..., Pair]


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> PairOf:
    """Pairs of checkpoints, each written once a session: `pair_of(family="gpt2", tied=True)`."""
    made: dict[Kind, Pair] = {}

    def give(kind: Kind | None = None, /, **fields: object) -> Pair:
        kind = kind or Kind(**fields)  # type: ignore[arg-type]
        if kind not in made:
            folder: Path = tmp_path_factory.mktemp(str(kind))
            made[kind] = write_pair(folder, kind)
        return made[kind]

    return give
