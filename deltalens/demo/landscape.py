"""The three models of a loss landscape, as MFT's Figures 6 and 10 have them: a fine-tune of the
demo's base, the same fine-tuning continued, and a masked child of the fine-tune."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from deltalens.demo.build import demo_paths, identity_of, refuse_to_replace, write_held_out
from deltalens.demo.paths import stage_record
from deltalens.demo.recipe import DEFAULT_RECIPE, Recipe
from deltalens.demo.tasks import DOMAINS, held_out_prompts, stream
from deltalens.errors import DeltaLensError
from deltalens.io.files import write_whole

if TYPE_CHECKING:
    from deltalens.demo.stages import Making, Report

__all__ = ["LandscapePaths", "build_landscape"]

ROWS = 32
"""Rows that a landscape is measured on, of either kind: enough to tell the models apart."""
MASK_RATIO = 0.1
"""Share of the projections' weights that the third model lacks, as in MFT's local runs."""
MORE_STEPS = 150
"""Of the continued fine-tuning, and of the masks."""
SCORE_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class LandscapePaths:
    """Where the models of one domain's landscape lie."""

    folder: Path
    base: Path
    ft: Path
    continued: Path
    masked: Path
    train: Path
    """Rows that the fine-tune was trained on."""
    test: Path
    """Rows that no training saw."""


def build_landscape(
    folder: Path,
    domain: str = "maths",
    *,
    recipe: Recipe = DEFAULT_RECIPE,
    report: Report | None = None,
) -> LandscapePaths:
    """Train the models of a landscape that the folder does not have yet.

    These are the base, its fine-tune, the continued fine-tune (on the first of the same rows again,
    with a fresh optimizer and schedule), and the masked child: Mask Fine-Tuning on those rows. For
    maths the fine-tune is the demo's ``ft/``. If the call ends early, each model is whole or
    absent.

    Args:
        folder: of the demo.
        domain: what the fine-tune learns.
        recipe: the models' settings.
        report: called as by `build_demo`, with the stages ``base``, ``ft``, ``continued`` and
            ``masks``.

    Returns:
        Where the models and rows lie.

    Raises:
        DeltaLensError: an unknown domain; ``folder`` is a file, or has a model of these names that
            no demo wrote.
    """
    if domain not in DOMAINS:
        raise DeltaLensError(f"domain {domain!r}: choose {', '.join(DOMAINS)}")
    demo, identity = demo_paths(folder), identity_of(recipe)
    place = folder if domain == "maths" else folder / domain
    paths = LandscapePaths(
        folder=folder,
        base=demo.base,
        ft=place / "ft",
        continued=place / "ft-continued",
        masked=place / "ft-masked",
        train=folder / "data" / f"{domain}_seen.jsonl",
        test=demo.data[domain]["test"],
    )
    models = (paths.base, paths.ft, paths.continued, paths.masked)
    if all(stage_record(path, identity) is not None for path in models) and (
        paths.train.is_file() and paths.test.is_file()
    ):
        return paths
    refuse_to_replace(folder, models)

    from deltalens.demo.stages import Making, train_base

    held_out = write_held_out(demo, recipe)
    making = Making(demo, recipe, identity, held_out, report)
    train_base(making)
    rows = stream({domain: 1.0}, Random(f"{recipe.seed}/ft"), rejected=held_out_prompts(held_out))
    write_whole(paths.train, "".join(f"{row.to_json()}\n" for row in islice(rows, ROWS)).encode())
    _train_models(making, domain, paths)
    return paths


def _train_models(making: Making, domain: str, paths: LandscapePaths) -> None:
    from transformers import LlamaForCausalLM

    from deltalens.demo.stages import Making, Stage, finished
    from deltalens.io.pretrained import read_model
    from deltalens.methods.mft import MaskTuning

    recipe, report = making.recipe, making.report

    def stage(
        name: str, path: Path, start: Path, steps: int, rate: float, watch: Any = nullcontext
    ) -> None:
        made = Stage(
            name="ft",  # Names the rows: whoever goes on sees the same again.
            folder=path,
            start=lambda: read_model(start, LlamaForCausalLM, dtype="auto")[0],
            weights={domain: 1.0},
            steps=steps,
            learning_rate=rate,
        )
        told = (lambda _, done, total: report(name, done, total)) if report else None
        finished(made, Making(**{**vars(making), "report": told}), watch)

    @contextmanager
    def masks(model: LlamaForCausalLM) -> Iterator[None]:
        tuning = MaskTuning(model, mask_ratio=MASK_RATIO)
        yield
        tuning.merge()

    more = min(MORE_STEPS, recipe.finetune_steps)
    stage("ft", paths.ft, paths.base, recipe.finetune_steps, recipe.finetune_learning_rate)
    stage("continued", paths.continued, paths.ft, more, recipe.finetune_learning_rate)
    stage("masks", paths.masked, paths.ft, more, SCORE_LEARNING_RATE, masks)
