"""The demo's trainings. Each ends in a folder that is whole or absent."""

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
"""The domain that the demo's fine-tune learns, and on which exact match is measured."""


@dataclass(frozen=True)
class DemoBuild:
    """What the stages of one demo share."""

    paths: DemoPaths
    recipe: Recipe
    identity: Mapping[str, str]
    """What a stage's record must say to belong to this demo."""
    held_out: Mapping[str, HeldOut]
    report: Report | None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training."""

    name: str
    folder: Path
    start: Callable[[], LlamaForCausalLM]
    """Returns the model to train; called only if the stage is not finished."""
    weights: Mapping[str, float]
    """Relative frequency of each task in the training stream."""
    steps: int
    learning_rate: float


class _Outcome(NamedTuple):
    model: LlamaForCausalLM
    record: dict[str, Any]


def train_stages(build: DemoBuild) -> dict[str, dict[str, Any]]:
    """Train the base and the fine-tune, as far as they are missing.

    Args:
        build: the demo.

    Returns:
        Stage -> its record.
    """
    stages = (_base(build), _finetune(build))
    return {stage.name: finished(stage, build) for stage in stages}


def train_base(build: DemoBuild) -> None:
    """Train the base if it is missing.

    Args:
        build: the demo.
    """
    finished(_base(build), build)


def train_with_probe(build: DemoBuild) -> None:
    """Fine-tune with a probe attached and keep the run; and the model if the fine-tune is missing.
    The base is trained first if it is missing.

    Args:
        build: the demo.

    Raises:
        DeltaLensError: the probe did not log every step.
    """
    finished(_base(build), build)
    stage, run = _finetune(build), build.paths.probe_run
    with _replaced(run) as folder:
        outcome = _train(stage, build, lambda model: GradientProbe(model, folder, updates=True))
        logged = load_run(folder).tensors["step"].nunique()
        if logged != stage.steps:
            raise DeltaLensError(
                f"{run}: the probe logged {logged} of {stage.steps} steps, so the run is not kept; "
                "try again"
            )
        write_json(folder / STAGE_RECORD, outcome.record)
    if stage_record(stage.folder, build.identity) is None:
        _save(stage, build, outcome)


def base_prompts(build: DemoBuild) -> frozenset[str]:
    """List what the base is trained on.

    Args:
        build: the demo.

    Returns:
        The prompts of its training rows.
    """
    stage = _base(build)
    seen = islice(_rows(stage, build), stage.steps * build.recipe.batch_size)
    return frozenset(row.prompt for row in seen)


def _rows(stage: Stage, build: DemoBuild) -> Iterator[Row]:
    """The endless stream of rows that a stage trains on."""
    return stream(
        stage.weights,
        Random(f"{build.recipe.seed}/{stage.name}"),
        rejected=held_out_prompts(build.held_out),
    )


def _base(build: DemoBuild) -> Stage:
    recipe = build.recipe
    return Stage(
        name="base",
        folder=build.paths.base,
        start=lambda: build_model(recipe, build_tokenizer(recipe)),
        weights=recipe.base_mixture(),
        steps=recipe.base_steps,
        learning_rate=recipe.base_learning_rate,
    )


def _finetune(build: DemoBuild) -> Stage:
    """The fine-tune. It starts from the base's saved folder, so that a resumed demo equals an
    uninterrupted one."""
    recipe = build.recipe
    return Stage(
        name="ft",
        folder=build.paths.ft,
        start=lambda: read_model(build.paths.base, LlamaForCausalLM, dtype="auto")[0],
        weights={FINETUNE_DOMAIN: 1.0},
        steps=recipe.finetune_steps,
        learning_rate=recipe.finetune_learning_rate,
    )


def finished(
    stage: Stage,
    build: DemoBuild,
    watch: Callable[[LlamaForCausalLM], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Train a stage if it is missing.

    Args:
        stage: the stage.
        build: the demo.
        watch: makes a context from the model, in which it is trained.

    Returns:
        The stage's record.
    """
    record = stage_record(stage.folder, build.identity)
    if record is None:
        outcome = _train(stage, build, watch)
        _save(stage, build, outcome)
        record = outcome.record
    return record


def _train(
    stage: Stage,
    build: DemoBuild,
    watch: Callable[[LlamaForCausalLM], AbstractContextManager[object]] = nullcontext,
) -> _Outcome:
    recipe, report = build.recipe, build.report
    tokenizer, rows = build_tokenizer(recipe), _rows(stage, build)
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
    validation = build.held_out[FINETUNE_DOMAIN].validation
    record = {
        **build.identity,
        "steps": stage.steps,
        "seconds": round(trained.seconds, 3),
        "final_loss": trained.loss,
        "validation_exact_match": exact_match(model, tokenizer, validation),
    }
    return _Outcome(model, record)


def _save(stage: Stage, build: DemoBuild, outcome: _Outcome) -> None:
    with _replaced(stage.folder) as folder:
        outcome.model.save_pretrained(folder)
        build_tokenizer(build.recipe).save_pretrained(folder)
        write_json(folder / STAGE_RECORD, outcome.record)


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A new folder to fill; it replaces an earlier demo's."""
    if path.exists():
        shutil.rmtree(path)
    with new_folder(path) as folder:
        yield folder
