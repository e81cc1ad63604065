"""The demo's two trainings, each ending in a checkpoint folder that is whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from deltalens.demo.model import build_model, build_tokenizer
from deltalens.demo.paths import STAGE_RECORD, DemoPaths, stage_record, write_json
from deltalens.demo.recipe import Recipe
from deltalens.demo.tasks import HeldOut, held_out_prompts, stream
from deltalens.demo.train import exact_match, train
from deltalens.io.files import new_folder

Report: TypeAlias = Callable[[str, int, int], None]
"""Called with the stage's name, the steps done and the steps in all."""

FINETUNE_DOMAIN = "maths"
"""The domain that the demo's fine-tune learns, and that exact match is measured on."""


@dataclass(frozen=True, kw_only=True)
class _Stage:
    name: str
    folder: Path
    start: Callable[[], LlamaForCausalLM]
    """Gives the model to train; called only if the stage is not finished."""
    weights: Mapping[str, float]
    """Relative frequency of each task in the training stream."""
    steps: int
    learning_rate: float


def train_stages(
    paths: DemoPaths,
    recipe: Recipe,
    identity: Mapping[str, str],
    held_out: Mapping[str, HeldOut],
    report: Report | None,
) -> dict[str, dict[str, Any]]:
    """Train what is not there yet, and return each stage's record by its name.

    The fine-tune starts from the base's saved folder, so that a resumed demo and an uninterrupted
    one are the same.
    """
    tokenizer = build_tokenizer(recipe)
    base = _Stage(
        name="base",
        folder=paths.base,
        start=lambda: build_model(recipe, tokenizer),
        weights=recipe.base_mixture(),
        steps=recipe.base_steps,
        learning_rate=recipe.base_learning_rate,
    )
    finetune = _Stage(
        name="ft",
        folder=paths.ft,
        start=lambda: LlamaForCausalLM.from_pretrained(paths.base),
        weights={FINETUNE_DOMAIN: 1.0},
        steps=recipe.finetune_steps,
        learning_rate=recipe.finetune_learning_rate,
    )
    records = {}
    for stage in (base, finetune):
        record = stage_record(stage.folder, identity)
        if record is None:
            record = _run(stage, tokenizer, recipe, identity, held_out, report)
        records[stage.name] = record
    return records


def _run(
    stage: _Stage,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    identity: Mapping[str, str],
    held_out: Mapping[str, HeldOut],
    report: Report | None,
) -> dict[str, Any]:
    rows = stream(
        stage.weights,
        Random(f"{recipe.seed}/{stage.name}"),
        rejected=held_out_prompts(held_out),
    )
    with torch.random.fork_rng(devices=[]):
        model = stage.start()
    with _one_thread():
        trained = train(
            model,
            tokenizer,
            rows,
            steps=stage.steps,
            batch_size=recipe.batch_size,
            learning_rate=stage.learning_rate,
            progress=lambda done, total: report(stage.name, done, total) if report else None,
        )
    validation = held_out[FINETUNE_DOMAIN].validation
    record = {
        **identity,
        "steps": stage.steps,
        "seconds": round(trained.seconds, 3),
        "final_loss": trained.loss,
        "validation_exact_match": exact_match(model, tokenizer, validation),
    }

    if stage.folder.exists():
        shutil.rmtree(stage.folder)
    with new_folder(stage.folder) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / STAGE_RECORD, record)
    return record


@contextmanager
def _one_thread() -> Iterator[None]:
    """At this size two threads gain a third at best, and lose a factor of ten beside another busy
    process: they would wait for each other at every operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
