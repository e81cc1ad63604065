"""There is one selection: everybody comes in by its front door, and all of them by one search."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import GradientMask, GradientProbe, MaskTuning, RandomMask, drop, drop_study
from deltalens.methods.weight_masks import l1_weight_mask, random_weight_mask
from tests.architecture.import_graph import ROOT, Module, parse, project_sources
from tests.support.checkpoint_files import save_llama_pair

PACKAGE = "deltalens.numerics.selection"


def reaching_inside(modules: dict[str, Module]) -> list[str]:
    """Imports of what lies inside the package, by modules that do not."""
    return [
        f"{module.name}:{item.line} imports {item.target}"
        for module in modules.values()
        if not f"{module.name}.".startswith(f"{PACKAGE}.")
        for item in module.imports
        if item.target.startswith(f"{PACKAGE}.")
    ]


def test_nothing_reaches_inside() -> None:
    assert reaching_inside(parse(project_sources())) == []
    benchmarks = {
        f"benchmarks.{path.stem}": (False, path.read_text(encoding="utf-8"))
        for path in (ROOT / "benchmarks").glob("*.py")
    }
    assert reaching_inside(parse(project_sources() | benchmarks)) == []


@pytest.mark.parametrize(
    "source",
    [
        f"from {PACKAGE}.find import search",
        f"def f():\n    from {PACKAGE} import windows",
        f"import {PACKAGE}.loops",
    ],
)
def test_that_reaching_inside_would_be_seen(source: str) -> None:
    planted = project_sources() | {"deltalens.studies.planted": (False, source)}
    assert len(reaching_inside(parse(planted))) == 1


# --- one search -----------------------------------------------------------------------------------


class Searched(Exception):
    """The one search was asked."""


def step(model: nn.Module, hooked: Any) -> None:
    """One optimizer step under a probe or a mask."""
    with hooked:
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        torch.optim.SGD(model.parameters(), 0.1).step()


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5))


def llama(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(save_llama_pair(folder)[0])
    return model


def by_drop(strategy: str, **more: Any) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        ft, base = save_llama_pair(folder)
        drop(ft, base, folder / "out", strategy=strategy, rate="0.5", **more)

    return call


def by_study(strategy: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        ft, base = save_llama_pair(folder)
        drop_study(ft, base, folder / "study", rates="0:1:0.25", strategies=[strategy])

    return call


def by_probe(folder: Path) -> None:
    model = linear()
    with pytest.warns(UserWarning, match="stops logging .*Searched"):
        step(model, GradientProbe(model, folder / "run"))
    raise Searched


def by_gmt(folder: Path) -> None:
    model = linear()
    step(model, GradientMask(model, 0.5))


def by_random_mask(folder: Path) -> None:
    model = linear()
    step(model, RandomMask(model, 0.5))


def by_mask_tuning(**more: Any) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        model = llama(folder)
        MaskTuning(model, **more)
        model(input_ids=torch.tensor([[1, 2, 3]]))

    return call


CALLS: dict[str, Callable[[Path], None]] = {
    **{f"drop study, {way}": by_study(way) for way in ("salient", "trivial", "random")},
    **{f"drop, {way}": by_drop(way) for way in ("salient", "trivial", "random")},
    "drop of changed entries": by_drop("trivial", changed_only=True),
    "probe": by_probe,
    "GMT": by_gmt,
    "random masks of gradients": by_random_mask,
    "MFT": by_mask_tuning(),
    "MFT by value": by_mask_tuning(rank_by="value"),
    "MFT by a threshold": by_mask_tuning(threshold=-0.035),
    "L1": lambda folder: l1_weight_mask(llama(folder), mask_ratio="0.5").merge(),
    "random masks of weights": lambda folder: random_weight_mask(
        llama(folder), mask_ratio="0.5"
    ).merge(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whatever_is_ranked_goes_by_the_one_search(
    call: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Any:
        raise Searched

    # Loops are compiled by way of a search, before anything is ranked.
    monkeypatch.setattr("deltalens.methods.mft.compile_keep_loops", lambda dtype: None)
    for module in ("find", "keep"):
        monkeypatch.setattr(importlib.import_module(f"{PACKAGE}.{module}"), "search", fail)
    with pytest.raises(Searched):
        call(tmp_path)


@pytest.mark.parametrize("call", [by_gmt, by_random_mask, by_drop("trivial")])
def test_and_finds_it_where_nothing_is_in_the_way(
    call: Callable[[Path], None], tmp_path: Path
) -> None:
    call(tmp_path)
