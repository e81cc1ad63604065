"""Make the demo's folder: two checkpoints, held-out rows, a probe's run, and a record of how they
came about.

A finished stage is never made again: its folder is renamed into place with a record inside, and a
later call for the same recipe goes on from there. torch and transformers are imported only where
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
    read_json,
    same,
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

    ``base/`` and ``ft/`` are ordinary Hugging Face folders; beside them lie rows to train on and to
    test by. Whatever ends the call early, each of
    them is whole or absent, and the next call trains only what is absent. Another recipe or
    another version of deltalens makes the demo anew in the same folder. ``report`` is called with
    the stage's name, the steps done and the steps in all, a few times a second.

    Raises DeltaLensError if ``folder`` is a file, or has a ``base`` or ``ft`` that no demo wrote.
    """
    paths, identity = demo_paths(folder), identity_of(recipe)
    if _is_finished(paths, identity):
        return paths
    refuse_to_replace(folder, [paths.base, paths.ft])

    from deltalens.demo.stages import Making, train_stages

    held_out = write_held_out(paths, recipe)
    _write_training(paths, recipe, held_out)
    stages = train_stages(Making(paths, recipe, identity, held_out, report))
    write_json(folder / _RECORD, {**identity, "recipe": asdict(recipe), "stages": stages})
    return paths


def build_probe_run(
    folder: Path, *, recipe: Recipe = DEFAULT_RECIPE, report: Report | None = None
) -> DemoPaths:
    """Fine-tune the demo's base with a `GradientProbe` attached, unless the folder has its run.

    The base is trained first if it is absent. The fine-tuned model is bit for bit the one that
    `build_demo` trains, and becomes the demo's ``ft/`` if there is none yet. Otherwise as
    `build_demo`; the stage is called ``ft``, too.

    Raises DeltaLensError if ``folder`` is a file, or has a ``base``, ``ft`` or ``probe-run`` that
    no demo wrote.
    """
    paths, identity = demo_paths(folder), identity_of(recipe)
    if stage_record(paths.probe_run, identity) is not None:
        return paths
    refuse_to_replace(folder, [paths.base, paths.ft, paths.probe_run])

    from deltalens.demo.stages import Making, train_with_probe

    held_out = write_held_out(paths, recipe)
    train_with_probe(Making(paths, recipe, identity, held_out, report))
    return paths


TRAINING_ROWS = 4_800
"""Rows of each domain in a training file: 150 steps of 32."""
FEW_ROWS = 750
"""Rows of each domain in a file to train on again and again, until they are known by heart."""
MIXTURE = "mixture"


def build_base(
    folder: Path, *, recipe: Recipe = DEFAULT_RECIPE, report: Report | None = None
) -> DemoPaths:
    """Train the demo's base, unless it is there, and write rows to train on. Then, of each domain,
    as many rows as the recipe has to test by that neither the base nor these contain.

    Otherwise as `build_demo`.

    Raises DeltaLensError if ``folder`` is a file, or has a ``base`` that no demo wrote.
    """
    paths, identity = demo_paths(folder), identity_of(recipe)
    written = [*paths.training.values(), *paths.unseen.values(), paths.train, paths.test]
    if stage_record(paths.base, identity) is not None and all(map(Path.is_file, written)):
        return paths
    refuse_to_replace(folder, [paths.base])

    from random import Random

    from deltalens.demo.stages import Making, base_prompts, train_base
    from deltalens.demo.tasks import sample_apart

    held_out = write_held_out(paths, recipe)
    making = Making(paths, recipe, identity, held_out, report)
    train_base(making)
    taken = _write_training(paths, recipe, held_out) | base_prompts(making)
    for domain, file in paths.unseen.items():
        rng = Random(f"{recipe.seed}/{domain}/unseen")
        _write_rows(file, sample_apart(DOMAINS[domain], rng, recipe.test_rows, taken))
    return paths


def _write_training(
    paths: DemoPaths, recipe: Recipe, held_out: Mapping[str, HeldOut]
) -> frozenset[str]:
    """Write rows to train on, of each domain alone and of all three, as many of each:
    `TRAINING_ROWS`, and `FEW_ROWS`. Their prompts, and those held out."""
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
    """Where the parts of a demo lie."""
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
    """What a stage's record must say, to be of this recipe."""
    return {"fingerprint": recipe.fingerprint(), "version": version()}


def _is_finished(paths: DemoPaths, identity: Mapping[str, str]) -> bool:
    return (
        same(read_json(paths.folder / _RECORD), identity) is not None
        and all(stage_record(path, identity) is not None for path in (paths.base, paths.ft))
        and all(path.is_file() for files in paths.data.values() for path in files.values())
        and all(path.is_file() for path in (*paths.training.values(), paths.train, paths.test))
    )


def refuse_to_replace(folder: Path, stages: Iterable[Path]) -> None:
    """Raises DeltaLensError if the folder is a file, or has such a stage that no demo wrote."""
    if folder.exists() and not folder.is_dir():
        raise DeltaLensError(f"{folder} is a file; name a folder for the demo")
    for path in stages:
        if path.exists() and not (path / STAGE_RECORD).is_file():
            raise DeltaLensError(
                f"{path} is there already and was not written by a demo (it has no "
                f"{STAGE_RECORD}); choose another folder for the demo"
            )


def write_held_out(paths: DemoPaths, recipe: Recipe) -> dict[str, HeldOut]:
    """The recipe's held-out rows, and their files."""
    held_out = hold_out(
        recipe.seed, validation_rows=recipe.validation_rows, test_rows=recipe.test_rows
    )
    for domain, files in paths.data.items():
        for split, path in files.items():
            _write_rows(path, getattr(held_out[domain], split))
    return held_out
