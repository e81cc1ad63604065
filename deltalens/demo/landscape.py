"""The three models of a loss landscape, as MFT's Figures 6 and 10 have them: a fine-tune of the
demo's base, the same fine-tuning continued, and a masked child of the fine-tune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from deltalens.demo.build import _held_out, _identity, _paths, _refuse_to_replace
from deltalens.demo.paths import stage_record
from deltalens.demo.recipe import DEFAULT_RECIPE, Recipe
from deltalens.demo.tasks import DOMAINS, held_out_prompts, stream
from deltalens.errors import DeltaLensError
from deltalens.io.files import write_whole

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from deltalens.demo.stages import Making, Report

__all__ = ["LandscapePaths", "build_landscape"]

ROWS = 64
"""Rows that a landscape is measured on, of either kind: enough to tell the models apart."""
MASK_RATIO = 0.1
"""Share of the projections' weights that the third model lacks, as in MFT's local runs."""


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
    """Train what a landscape of a domain needs and the folder has not: the base, its fine-tune, the
    continued fine-tune (the same rows and steps again, with a fresh optimizer and schedule), and
    the masked child.

    Of maths the fine-tune is the demo's ``ft/``. Whatever ends the call early, each model is whole
    or absent. ``report`` is called as by `build_demo`, with the stages ``base``, ``ft`` and
    ``continued``.

    Raises DeltaLensError for an unknown domain, if ``folder`` is a file, or if it has a model of
    these names that no demo wrote.
    """
    if domain not in DOMAINS:
        raise DeltaLensError(f"domain {domain!r}: choose {', '.join(DOMAINS)}")
    demo, identity = _paths(folder), _identity(recipe)
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
    _refuse_to_replace(folder, models)

    from deltalens.demo.stages import Making, train_base

    held_out = _held_out(demo, recipe)
    making = Making(demo, recipe, identity, held_out, report)
    train_base(making)
    rows = stream({domain: 1.0}, Random(f"{recipe.seed}/ft"), rejected=held_out_prompts(held_out))
    write_whole(paths.train, "".join(f"{row.to_json()}\n" for row in islice(rows, ROWS)).encode())
    _train_models(making, domain, paths)
    return paths


def _train_models(making: Making, domain: str, paths: LandscapePaths) -> None:
    from transformers import LlamaForCausalLM

    from deltalens.demo import stages

    def stage(name: str, path: Path, start: Path) -> None:
        recipe = making.recipe
        made = stages._Stage(
            name="ft",  # Names the rows: the continued fine-tuning sees the same again.
            folder=path,
            start=lambda: LlamaForCausalLM.from_pretrained(start),
            weights={domain: 1.0},
            steps=recipe.finetune_steps,
            learning_rate=recipe.finetune_learning_rate,
        )
        report = making.report
        told = (lambda _, done, total: report(name, done, total)) if report else None
        stages._finished(made, stages.Making(**{**vars(making), "report": told}))

    stage("ft", paths.ft, paths.base)
    stage("continued", paths.continued, paths.ft)
    if stage_record(paths.masked, making.identity) is None:
        _mask(making, paths, _smallest_removed)


def _mask(
    making: Making, paths: LandscapePaths, masked: Callable[[LlamaForCausalLM], None]
) -> None:
    """Save the fine-tune as `masked` leaves it."""
    from transformers import LlamaForCausalLM

    from deltalens.demo.model import build_tokenizer
    from deltalens.demo.paths import STAGE_RECORD, write_json
    from deltalens.demo.stages import _replaced

    model = LlamaForCausalLM.from_pretrained(paths.ft)
    masked(model)
    with _replaced(paths.masked) as folder:
        model.save_pretrained(folder)
        build_tokenizer(making.recipe).save_pretrained(folder)
        write_json(folder / STAGE_RECORD, {**making.identity, "mask_ratio": MASK_RATIO})


# THE THIRD MODEL: until `deltalens.methods.mft` can learn a mask, the smallest weights go. Give
# `_mask` a function that masks by a learned one instead.
def _smallest_removed(model: LlamaForCausalLM) -> None:
    """Set the smallest weights of every projection to 0 (the papers' L1 mask), in place."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                sizes = weight.abs().view(-1)
                removed = sizes.topk(round(MASK_RATIO * sizes.numel()), largest=False).indices
                weight.view(-1)[removed] = 0
