"""The three models of a loss landscape, as in MFT's Figures 6 and 10: a fine-tune of the demo's
base, the same fine-tuning continued, and a masked child of the fine-tune."""

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
    from deltalens.demo.stages import DemoBuild, Report

__all__ = ["LandscapePaths", "build_landscape"]

ROWS = 32
"""Training rows, and as many test rows, that a landscape is measured on: enough to tell the models
apart."""
MASK_RATIO = 0.1
"""Share of the projections' weights that the masks remove, as in MFT's local runs."""
MORE_STEPS = 150
"""Steps of the continued fine-tuning, and of learning the masks."""
SCORE_LEARNING_RATE = 3e-3
"""Peak learning rate of the masks' scores."""


@dataclass(frozen=True)
class LandscapePaths:
    """The paths of one domain's models and rows."""

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
    """Train the models of a domain's landscape, unless the folder has them already: the base, its
    fine-tune, the continued fine-tune (on the first of the same rows again, with a fresh optimizer
    and schedule), and the masked child (Mask Fine-Tuning on the same rows).

    For maths the fine-tune is the demo's ``ft/``. If the call is interrupted, each model is whole
    or absent.

    Args:
        folder: of the demo; made if it does not exist.
        domain: `maths`, `code` or `instructions`.
        recipe: everything that the models depend on.
        report: as for `build_demo`; the stages are ``base``, ``ft``, ``continued`` and ``masks``.

    Returns:
        The paths of models and rows.

    Raises:
        DeltaLensError: the domain is unknown, the folder is a file, or it has a model of these
            names that no demo wrote.
    """
    if domain not in DOMAINS:
        raise DeltaLensError(f"unknown domain {domain!r}: choose {', '.join(DOMAINS)}")
    demo, identity = demo_paths(folder), identity_of(recipe)
    models_folder = folder if domain == "maths" else folder / domain
    paths = LandscapePaths(
        folder=folder,
        base=demo.base,
        ft=models_folder / "ft",
        continued=models_folder / "ft-continued",
        masked=models_folder / "ft-masked",
        train=folder / "data" / f"{domain}_seen.jsonl",
        test=demo.data[domain]["test"],
    )
    models = (paths.base, paths.ft, paths.continued, paths.masked)
    if all(stage_record(path, identity) is not None for path in models) and (
        paths.train.is_file() and paths.test.is_file()
    ):
        return paths
    refuse_to_replace(folder, models)

    from deltalens.demo.stages import DemoBuild, train_base

    held_out = write_held_out(demo, recipe)
    build = DemoBuild(demo, recipe, identity, held_out, report)
    train_base(build)
    rows = stream({domain: 1.0}, Random(f"{recipe.seed}/ft"), rejected=held_out_prompts(held_out))
    write_whole(paths.train, "".join(f"{row.to_json()}\n" for row in islice(rows, ROWS)).encode())
    _train_models(build, domain, paths)
    return paths


def _train_models(build: DemoBuild, domain: str, paths: LandscapePaths) -> None:
    from transformers import LlamaForCausalLM

    from deltalens.demo.stages import DemoBuild, Stage, finished
    from deltalens.io.pretrained import read_model
    from deltalens.methods.mft import MaskTuning

    recipe, report = build.recipe, build.report

    def stage(
        name: str, path: Path, start: Path, steps: int, rate: float, watch: Any = nullcontext
    ) -> None:
        settings = Stage(
            name="ft",  # It seeds the rows: all three models train on the same ones.
            folder=path,
            start=lambda: read_model(start, LlamaForCausalLM, dtype="auto")[0],
            weights={domain: 1.0},
            steps=steps,
            learning_rate=rate,
        )
        renamed = (lambda _, done, total: report(name, done, total)) if report else None
        finished(settings, DemoBuild(**{**vars(build), "report": renamed}), watch)

    @contextmanager
    def masks(model: LlamaForCausalLM) -> Iterator[None]:
        tuning = MaskTuning(model, mask_ratio=MASK_RATIO)
        yield
        tuning.merge()

    more_steps = min(MORE_STEPS, recipe.finetune_steps)
    stage("ft", paths.ft, paths.base, recipe.finetune_steps, recipe.finetune_learning_rate)
    stage("continued", paths.continued, paths.ft, more_steps, recipe.finetune_learning_rate)
    stage("masks", paths.masked, paths.ft, more_steps, SCORE_LEARNING_RATE, masks)
