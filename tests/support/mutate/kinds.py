"""Every kind of file that deltalens reads, and what is done with a damaged one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support.mutate import operations as do
from tests.support.mutate.damage import Damage, damage_sealed
from tests.support.mutate.operations import Seen
from tests.support.mutate.workbench import STUDIES

__all__ = ["KINDS", "QUICK", "Kind", "Mutant", "Operation", "mutant"]

QUICK = 2_000
"""So many mutants come first that hardly anything is loaded, drawn or trained for."""
_DEAR = 25
"""Every so many-th of them all the same."""


@dataclass(frozen=True)
class Operation:
    """Something done with a damaged file."""

    run: Callable[[Path], Seen]
    share: int = 1
    """How often, beside the kind's others."""
    dear: bool = False
    """Takes a tenth of a second and more."""
    makes: tuple[str, ...] = ()
    """Patterns of what may lie there afterwards, where the mutant was accepted."""
    first: Callable[[Path], None] = lambda file: None
    """Done before the damage."""

    @property
    def name(self) -> str:
        """For reports."""
        return self.run.__name__


@dataclass(frozen=True)
class Kind:
    """Files of one kind."""

    name: str
    files: tuple[str, ...]
    """Patterns, in the workbench."""
    operations: tuple[Operation, ...]
    share: int
    """Of 100 mutants."""
    own: bool = False
    """Whether deltalens wrote it: then a mutant is refused, or gives the clean number."""
    damage: Damage | None = None
    """Instead of that of the files' endings."""
    replaced: float = field(default=0.03)
    """How often something else takes the file's place: a folder, a pipe, a link, nothing."""


_MADE = ("new/**", "new")


def _resumes(*kinds: str) -> tuple[Operation, ...]:
    return tuple(Operation(do.again(kind), 1, True, _MADE) for kind in kinds)


_PICTURES = tuple(f"*/*/*.{end}" for end in ("png", "svg", "csv", "md"))
_OF_A_RUN = ("run/*.png", "run/*.svg")
_STUDY = tuple(f"studies/*/{name}" for name in ("*.json", "*.jsonl", "*.csv"))
_PAIR = Operation(do.paired, 6)
_INSPECT = Operation(do.inspected, 4)
_COMMAND = Operation(do.by_command("inspect", "ft", "base", "-o", "new"), 1, True, _MADE)
_DROP = Operation(do.dropped, 2, False, _MADE)
_COPIED = Operation(do.dropped, 1, True, _MADE)
_STUDIED = Operation(do.studied, 4, True, _MADE)
_OF_MODELS = _resumes("drop-study", "landscape", "mask-ratio-sweep", "layer-sweep")
_OF_TEXTS = _resumes("drop-study", "drop-study-on-data")
_OF_ROWS = _resumes("drop-study-on-data", "comparison", "layer-sweep")


def _study(kind: str) -> Kind:
    """A study of a kind: its records."""
    goes_on = (
        Operation(do.gone_on_with, 1, True, _STUDY),
        Operation(do.gone_on_with, 1, True, _STUDY, do.cut_short),
    )
    return Kind(
        kind,
        tuple(f"studies/{kind}/{name}" for name in ("study.json", "cells.*", "texts.json")),
        (
            Operation(do.loaded, 14),
            Operation(do.drawn, 2, True, _PICTURES),
            Operation(do.by_command("plot", "FOLDER"), 1, True, _PICTURES),
            *(goes_on if kind != "inspect" else ()),
        ),
        share=2 if kind in ("layer-sweep-mft", "plane") else 3,
        own=True,
    )


KINDS: tuple[Kind, ...] = (
    Kind(
        "weights",
        ("ft/*.safetensors", "base/*.safetensors"),
        (_PAIR, _INSPECT, _DROP, _COMMAND, _STUDIED, *_OF_MODELS),
        12,
    ),
    Kind("index", ("ft/*.index.json",), (_PAIR, _INSPECT, _DROP, _COMMAND, *_OF_MODELS), 4),
    Kind(
        "configuration",
        ("ft/*config.json", "base/*config.json"),
        (_PAIR, _INSPECT, _DROP, _STUDIED, *_OF_MODELS),
        7,
    ),
    Kind("tokenizer", ("ft/tokenizer*", "base/tokenizer*"), (_COPIED, _STUDIED, *_OF_TEXTS), 6),
    Kind("chat template", ("ft/*.jinja",), (_COPIED, _STUDIED, *_OF_TEXTS), 4),
    Kind(
        "rows",
        ("rows/*.*", "rows/saved/*"),
        (Operation(do.read, 16), Operation(do.measured_on, 2, True, _MADE), *_OF_ROWS),
        16,
    ),
    *map(_study, STUDIES),
    Kind(
        "older study",
        ("older/*/study.json", "older/*/cells.*"),
        (Operation(do.loaded, 14), Operation(do.drawn, 2, True, _PICTURES)),
        6,
    ),
    Kind(
        "forged study",
        ("studies/*/study.json", "studies/*/cells.jsonl"),
        (Operation(do.loaded, 14), Operation(do.drawn, 2, True, _PICTURES)),
        8,
        damage=damage_sealed,
    ),
    Kind(
        "forged run",
        ("run/run.json",),
        (Operation(do.watched, 8), Operation(do.watched_and_drawn, 1, True, _OF_A_RUN)),
        2,
        damage=damage_sealed,
    ),
    Kind(
        "forged training",
        ("training/train.json", "training/metrics.jsonl", "removed/train.json"),
        (Operation(do.trainings, 1, True, ("training/*", "training/**", "removed/*.*")),),
        2,
        damage=damage_sealed,
    ),
    Kind(
        "run",
        ("run/run.json", "run/*/*.parquet"),
        (
            Operation(do.watched, 8),
            Operation(do.watched_and_drawn, 1, True, _OF_A_RUN),
            Operation(do.by_command("monitor", "run"), 1, True, _OF_A_RUN),
        ),
        6,
        own=True,
    ),
    Kind(
        "masks",
        ("masks.safetensors",),
        (Operation(do.masks_read), Operation(do.masked, 1, True)),
        4,
        own=True,
    ),
    Kind(
        "sparse adapter",
        ("sparse.safetensors",),
        (Operation(do.entries_read), Operation(do.adapter_applied, 1, True)),
        3,
        own=True,
    ),
    Kind(
        "shira adapter",
        ("shira/*.json", "shira/*.safetensors"),
        (Operation(do.adapter_applied, dear=True),),
        2,
    ),
    Kind(
        "recipe",
        ("recipe.yaml",),
        (Operation(do.recipe_read, 9), Operation(do.trained_by_recipe, 1, True, _MADE)),
        4,
    ),
    Kind(
        "adapter",
        ("adapter/*.json", "adapter/*.safetensors"),
        (Operation(do.merged, dear=True),),
        2,
    ),
    Kind(
        "removed shares",
        ("removed/train.json",),
        (Operation(do.drawn, 1, True, ("removed/removed_shares.*", "removed/training.*")),),
        1,
        own=True,
    ),
    Kind(
        "training",
        (
            *("training/train.json", "training/metrics.jsonl"),
            *("training/checkpoints/*.safetensors", "training/checkpoints/checkpoint-*/*"),
        ),
        (Operation(do.training_resumed, 1, True, ("training/*", "training/**")),),
        3,
        own=True,
    ),
)

_TURN = [kind for kind in KINDS for _ in range(kind.share)]


@dataclass(frozen=True)
class Mutant:
    """A number's damage: what, where, and what is done with it."""

    number: int
    kind: Kind
    operation: Operation
    draw: random.Random
    """For the file, and the damage to it."""


@cache
def _turn() -> list[Kind]:
    """The kinds in an order in which any thousand in a row have every one."""
    turn = list(_TURN)
    random.Random(0).shuffle(turn)
    return turn


def mutant(seed: int, number: int) -> Mutant:
    """The mutant of this number."""
    turn = _turn()
    kind = turn[number % len(turn)]
    draw = random.Random(f"{seed} {number}")
    cheap = [one for one in kind.operations if not one.dear]
    choice = kind.operations if number >= QUICK or number % _DEAR == 0 else cheap
    if not choice:
        # Of a kind with nothing cheap in it: another kind's turn.
        kind = draw.choice([one for one in KINDS if not one.operations[0].dear])
        choice = [one for one in kind.operations if not one.dear]
    operation = draw.choices(choice, [one.share for one in choice])[0]
    return Mutant(number, kind, operation, draw)
