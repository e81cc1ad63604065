"""A demo that is made in seconds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deltalens.api import demos
from deltalens.api.steps import Step
from deltalens.demo import Recipe, build

__all__ = ["TINY", "shortened", "tiny_models"]

TINY = Recipe(
    hidden_size=12,
    intermediate_size=16,
    blocks=1,
    heads=1,
    batch_size=4,
    base_steps=6,
    finetune_steps=5,
    validation_rows=10,
    test_rows=10,
)


def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Demos make their models by this recipe, until the test ends."""
    for name in ("build_base", "build_demo", "build_probe_run"):
        make = functools.partial(getattr(build, name), recipe=TINY)
        monkeypatch.setattr(build, name, make)


def shortened(
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    less: Mapping[str, Any],
    of_one: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """The steps of a part of the demo take less, until the test ends.

    Args:
        monkeypatch: of the test.
        part: of the demo.
        less: an argument's name -> its value, in every step that has it.
        of_one: a folder's name -> the same for the step that writes it.
    """
    whole = demos.PARTS[part]

    def steps(out: Path, *rest: Any) -> Iterator[Step]:
        for step in whole(out, *rest):
            changed = {**less, **(of_one or {}).get(Path(step.arguments["out"]).name, {})}
            known = {name: value for name, value in changed.items() if name in step.arguments}
            yield dataclasses.replace(step, arguments={**step.arguments, **known})

    monkeypatch.setitem(demos.PARTS, part, steps)  # type: ignore[arg-type]
