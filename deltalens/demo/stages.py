"""The demo's trainings, each ending in a folder that is whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeAlias

import torch
from transformers import LlamaForCausalLM

from deltalens.demo.model import build_model, build_tokenizer
from deltalens.demo.paths import STAGE_RECORD, DemoPaths, stage_record, write_json
from deltalens.demo.recipe import Recipe
from deltalens.demo.tasks import HeldOut, Row, held_out_prompts, stream
from deltalens.demo.train import exact_match, train
from deltalens.errors import DeltaLensError
from deltalens.io.folders import new_folder
from deltalens.io.pretrained import read_model
from deltalens.io.records import load_run
from deltalens.numerics.workers import one_thread
from deltalens.probes.gradient import GradientProbe

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage's name, the steps done and the steps in all."""

FINETUNE_DOMAIN = "maths"
"""The domain that the demo's fine-tune learns, and that exact match is measured on."""


@dataclass(frozen=True)
class Making:
    """A demo that is being made."""

    paths: DemoPaths
    recipe: Recipe
    identity: Mapping[str, str]
    """What a stage's record must say, to be of this demo."""
    held_out: Mapping[str, HeldOut]
    report: Report | None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training."""

    name: str
    folder: Path
    start: Callable[[], LlamaForCausalLM]
    """Gives the model to train; called only if the stage is not finished."""
    weights: Mapping[str, float]
    """Relative frequency of each task in the training stream."""
    steps: int
    learning_rate: float


class _Outcome(NamedTuple):
    model: LlamaForCausalLM
    record: dict[str, Any]


def train_stages(making: Making) -> dict[str, dict[str, Any]]:
    """Train what is not there yet, and return each stage's record by its name."""
    stages = (_base(making), _finetune(making))
    return {stage.name: finished(stage, making) for stage in stages}


def train_base(making: Making) -> None:
    """Train the base, if it is not there yet."""
    finished(_base(making), making)


def train_with_probe(making: Making) -> None:
    """Fine-tune with a probe attached, on the base that is there or trained first, and keep the
    run; the model as well, if the fine-tune is not there yet."""
    finished(_base(making), making)
    stage, run = _finetune(making), making.paths.probe_run
    with _replaced(run) as folder:
        outcome = _train(stage, making, lambda model: GradientProbe(model, folder, updates=True))
        logged = load_run(folder).tensors["step"].nunique()
        if logged != stage.steps:
            raise DeltaLensError(
                f"{run}: the probe logged {logged} of {stage.steps} steps, so the run is not kept; "
                "try again"
            )
        write_json(folder / STAGE_RECORD, outcome.record)
    if stage_record(stage.folder, making.identity) is None:
        _save(stage, making, outcome)


def base_prompts(making: Making) -> frozenset[str]:
    """All that the base is trained on."""
    stage = _base(making)
    seen = islice(_rows(stage, making), stage.steps * making.recipe.batch_size)
    return frozenset(row.prompt for row in seen)


def _rows(stage: Stage, making: Making) -> Iterator[Row]:
    """What a stage trains on, without end."""
    return stream(
        stage.weights,
        Random(f"{making.recipe.seed}/{stage.name}"),
        rejected=held_out_prompts(making.held_out),
    )


def _base(making: Making) -> Stage:
    recipe = making.recipe
    return Stage(
        name="base",
        folder=making.paths.base,
        start=lambda: build_model(recipe, build_tokenizer(recipe)),
        weights=recipe.base_mixture(),
        steps=recipe.base_steps,
        learning_rate=recipe.base_learning_rate,
    )


def _finetune(making: Making) -> Stage:
    """Starts from the base's saved folder, so that a resumed demo and an uninterrupted one are the
    same."""
    recipe = making.recipe
    return Stage(
        name="ft",
        folder=making.paths.ft,
        start=lambda: read_model(making.paths.base, LlamaForCausalLM, dtype="auto")[0],
        weights={FINETUNE_DOMAIN: 1.0},
        steps=recipe.finetune_steps,
        learning_rate=recipe.finetune_learning_rate,
    )


def finished(
    stage: Stage,
    making: Making,
    watch: Callable[[LlamaForCausalLM], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """The stage's record; it is trained first if it is not there yet, within `watch`."""
    record = stage_record(stage.folder, making.identity)
    if record is None:
        outcome = _train(stage, making, watch)
        _save(stage, making, outcome)
        record = outcome.record
    return record


def _train(
    stage: Stage,
    making: Making,
    watch: Callable[[LlamaForCausalLM], AbstractContextManager[object]] = nullcontext,
) -> _Outcome:
    recipe, report = making.recipe, making.report
    tokenizer, rows = build_tokenizer(recipe), _rows(stage, making)
    with torch.random.fork_rng(devices=[]):
        model = stage.start()
    with one_thread(), watch(model):
        trained = train(
            model,
            tokenizer,
            rows,
            steps=stage.steps,
            batch_size=recipe.batch_size,
            learning_rate=stage.learning_rate,
            progress=lambda done, total: report(stage.name, done, total) if report else None,
        )
    validation = making.held_out[FINETUNE_DOMAIN].validation
    record = {
        **making.identity,
        "steps": stage.steps,
        "seconds": round(trained.seconds, 3),
        "final_loss": trained.loss,
        "validation_exact_match": exact_match(model, tokenizer, validation),
    }
    return _Outcome(model, record)


def _save(stage: Stage, making: Making, outcome: _Outcome) -> None:
    with _replaced(stage.folder) as folder:
        outcome.model.save_pretrained(folder)
        build_tokenizer(making.recipe).save_pretrained(folder)
        write_json(folder / STAGE_RECORD, outcome.record)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of an earlier demo's."""
    if path.exists():
        shutil.rmtree(path)
    with new_folder(path) as folder:
        yield folder
