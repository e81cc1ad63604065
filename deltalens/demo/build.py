"""Build the demo's folder: two checkpoints, held-out rows, a probe's run, and a record of how they
were made.

A finished stage is never repeated: its folder is renamed into place with a record inside, and a
later call for the same recipe continues from there. torch and transformers are imported only if
something is left to train, so that finding a finished demo takes no time.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.demo.paths import (
    STAGE_RECORD,
    DemoPaths,
    matching,
    read_json,
    stage_record,
    write_json,
)
from deltalens.demo.recipe import DEFAULT_RECIPE, Recipe
from deltalens.demo.tasks import DOMAINS, SPLITS, hold_out
from deltalens.errors import DeltaLensError
from deltalens.io.files import write_whole
from deltalens.io.version import version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deltalens.demo.stages import Report
    from deltalens.demo.tasks import HeldOut, Row

_RECORD = "demo.json"


def build_demo(
    folder: Path, *, recipe: Recipe = DEFAULT_RECIPE, report: Report | None = None
) -> DemoPaths:
    """Train the demo's base model and its maths fine-tune, unless the folder has them already.

    ``base/`` and ``ft/`` are ordinary Hugging Face folders; beside them are rows for training and
    for testing. If the call is interrupted, each of them is whole or absent, and the next call
    trains only what is absent. Another recipe or another version of deltalens rebuilds the demo in
    the same folder.

    Args:
        folder: of the demo; made if it does not exist.
        recipe: everything that the models depend on.
        report: called with the stage's name, the steps done and the steps in all, twice a second.

    Returns:
        The paths of the demo's parts.

    Raises:
        DeltaLensError: the folder is a file, or has a ``base`` or ``ft`` that no demo wrote.
    """
    paths, identity = demo_paths(folder), identity_of(recipe)
    if _is_finished(paths, identity):
        return paths
    refuse_to_replace(folder, [paths.base, paths.ft])

    from deltalens.demo.stages import DemoBuild, train_stages

    held_out = write_held_out(paths, recipe)
    _write_training(paths, recipe, held_out)
    stages = train_stages(DemoBuild(paths, recipe, identity, held_out, report))
    write_json(folder / _RECORD, {**identity, "recipe": asdict(recipe), "stages": stages})
    return paths


def build_probe_run(
    folder: Path, *, recipe: Recipe = DEFAULT_RECIPE, report: Report | None = None
) -> DemoPaths:
    """Fine-tune the demo's base with a `GradientProbe` attached, unless the folder has its run.

    The base is trained first if it is absent. The fine-tuned model is bit for bit the one that
    `build_demo` trains, and becomes the demo's ``ft/`` if there is none yet.

    Args:
        folder: of the demo; made if it does not exist.
        recipe: everything that the models depend on.
        report: as for `build_demo`; the stages are ``base`` and ``ft``.

    Returns:
        The paths of the demo's parts.

    Raises:
        DeltaLensError: the folder is a file, or has a ``base``, ``ft`` or ``probe-run`` that no
            demo wrote.
    """
    paths, identity = demo_paths(folder), identity_of(recipe)
    if stage_record(paths.probe_run, identity) is not None:
        return paths
    refuse_to_replace(folder, [paths.base, paths.ft, paths.probe_run])

    from deltalens.demo.stages import DemoBuild, train_with_probe

    held_out = write_held_out(paths, recipe)
    train_with_probe(DemoBuild(paths, recipe, identity, held_out, report))
    return paths


TRAINING_ROWS = 4_800
"""Rows of each domain in a training file: 150 steps of 32."""
FEW_ROWS = 750
"""Rows of each domain in a file to train on for many epochs, until the model has memorized them."""
MIXTURE = "mixture"


def build_base(
    folder: Path, *, recipe: Recipe = DEFAULT_RECIPE, report: Report | None = None
) -> DemoPaths:
    """Train the demo's base, unless it is there, and write rows to train on; and for each domain
    rows to test on that neither the base nor these trainings have seen.

    Args:
        folder: of the demo; made if it does not exist.
        recipe: everything that the models depend on.
        report: as for `build_demo`.

    Returns:
        The paths of the demo's parts.

    Raises:
        DeltaLensError: the folder is a file, or has a ``base`` that no demo wrote.
    """
    paths, identity = demo_paths(folder), identity_of(recipe)
    written = [*paths.training.values(), *paths.unseen.values(), paths.train, paths.test]
    if stage_record(paths.base, identity) is not None and all(map(Path.is_file, written)):
        return paths
    refuse_to_replace(folder, [paths.base])

    from random import Random

    from deltalens.demo.stages import DemoBuild, base_prompts, train_base
    from deltalens.demo.tasks import sample_apart

    held_out = write_held_out(paths, recipe)
    build = DemoBuild(paths, recipe, identity, held_out, report)
    train_base(build)
    taken = _write_training(paths, recipe, held_out) | base_prompts(build)
    for domain, file in paths.unseen.items():
        rng = Random(f"{recipe.seed}/{domain}/unseen")
        _write_rows(file, sample_apart(DOMAINS[domain], rng, recipe.test_rows, taken))
    return paths


def _write_training(
    paths: DemoPaths, recipe: Recipe, held_out: Mapping[str, HeldOut]
) -> frozenset[str]:
    """Write training rows for each domain and for a mixture of all: a long and a short file each.
    Returns the prompts that are no longer free: those written and those held out."""
    from random import Random

    from deltalens.demo.tasks import held_out_prompts, stream

    taken = held_out_prompts(held_out)
    for name, file in paths.training.items():
        domain, _, few = name.partition("_")
        domains = tuple(DOMAINS) if domain == MIXTURE else (domain,)
        endless = stream(
            dict.fromkeys(domains, 1.0),
            Random(f"{recipe.seed}/{domain}/training"),
            rejected=held_out_prompts(held_out),
        )
        rows = list(islice(endless, (FEW_ROWS if few else TRAINING_ROWS) * len(domains)))
        taken |= {row.prompt for row in rows}
        _write_rows(file, rows)
    write_whole(paths.train, paths.training["maths"].read_bytes())
    write_whole(paths.test, paths.data["maths"]["test"].read_bytes())
    return taken


def _write_rows(file: Path, rows: Iterable[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(f"{row.to_json()}\n" for row in rows).encode())


def demo_paths(folder: Path) -> DemoPaths:
    """Name the parts of a demo.

    Args:
        folder: of the demo.

    Returns:
        Their paths, whether they exist or not.
    """
    data = {
        domain: {split: folder / "data" / f"{domain}_{split}.jsonl" for split in SPLITS}
        for domain in DOMAINS
    }
    training = {
        f"{name}{few}": folder / "data" / f"{name}{few}_train.jsonl"
        for name in (*DOMAINS, MIXTURE)
        for few in ("", "_few")
    }
    unseen = {domain: folder / "data" / f"{domain}_unseen.jsonl" for domain in DOMAINS}
    return DemoPaths(
        folder=folder,
        base=folder / "base",
        ft=folder / "ft",
        probe_run=folder / "probe-run",
        data=data,
        training=training,
        train=folder / "train.jsonl",
        test=folder / "test.jsonl",
        unseen=unseen,
    )


def identity_of(recipe: Recipe) -> dict[str, str]:
    """Identify a recipe in this version of deltalens.

    Args:
        recipe: everything that the models depend on.

    Returns:
        What the record of a stage must say to belong to it.
    """
    return {"fingerprint": recipe.fingerprint(), "version": version()}


def _is_finished(paths: DemoPaths, identity: Mapping[str, str]) -> bool:
    return (
        matching(read_json(paths.folder / _RECORD), identity) is not None
        and all(stage_record(path, identity) is not None for path in (paths.base, paths.ft))
        and all(path.is_file() for files in paths.data.values() for path in files.values())
        and all(path.is_file() for path in (*paths.training.values(), paths.train, paths.test))
    )


def refuse_to_replace(folder: Path, stages: Iterable[Path]) -> None:
    """Protect what a user has in the folder.

    Args:
        folder: of the demo.
        stages: folders that the demo is about to write.

    Raises:
        DeltaLensError: the folder is a file, or has one of the stages, and no demo wrote it.
    """
    if folder.exists() and not folder.is_dir():
        raise DeltaLensError(f"{folder} is a file; name a folder for the demo")
    for path in stages:
        if path.exists() and not (path / STAGE_RECORD).is_file():
            raise DeltaLensError(
                f"{path} exists already and was not written by a demo (it has no "
                f"{STAGE_RECORD}); choose another folder for the demo"
            )


def write_held_out(paths: DemoPaths, recipe: Recipe) -> dict[str, HeldOut]:
    """Write the recipe's held-out rows.

    Args:
        paths: of the demo.
        recipe: everything that the rows depend on.

    Returns:
        Domain -> its held-out rows.
    """
    held_out = hold_out(
        recipe.seed, validation_rows=recipe.validation_rows, test_rows=recipe.test_rows
    )
    for domain, files in paths.data.items():
        for split, path in files.items():
            _write_rows(path, getattr(held_out[domain], split))
    return held_out
