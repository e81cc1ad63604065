"""One set of options for data, in every command and every function that reads rows."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from deltalens.studies.efficiency import efficiency
from deltalens.studies.measuring import Measuring
from deltalens.studies.training_plans import TrainingData
from deltalens.training.run import train
from tests.architecture.commands import root_command, working_commands

MEASURED, TRAINED = "--data", "--train-data"
"""Rows to measure on, of a model as it is; rows to train on."""
LIMITS = {MEASURED: "--limit", TRAINED: "--train-limit"}
FIELDS = (
    *("--prompt-field", "--completion-field", "--messages-field", "--text-field"),
    *("--label-field", "--sentence1-field", "--sentence2-field"),
)
MEASURING = {"drop-study", "evaluate", "landscape", "salience", "sweep layers-drop"}
TRAINING = {
    *("train sft", "train mft", "compare", "efficiency"),
    *("sweep mask-ratio", "sweep data-ratio", "sweep layers"),
}


def told(*files: str) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Each command with one of these options: what its options say of themselves."""
    found = {}
    for path, command in working_commands(root_command()):
        named = {
            flag: (parameter.help, parameter.metavar, parameter.multiple)
            for parameter in command.params
            for flag in parameter.opts
            if flag.startswith("--")
        }
        if {*files} & {*named}:
            found[" ".join(path)] = named
    return found


def test_all_commands_that_read_rows_are_looked_at() -> None:
    assert {*told(MEASURED)} == MEASURING
    assert {*told(TRAINED)} >= TRAINING
    assert not {*told(TRAINED)} & MEASURING


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_named_alike_in_every_command(field: str) -> None:
    assert len({named.get(field) for named in told(MEASURED, TRAINED).values()}) == 1


@pytest.mark.parametrize("rows", LIMITS)
def test_rows_and_their_limit_mean_the_same_in_every_command(rows: str) -> None:
    others = {*LIMITS.values()} - {LIMITS[rows]}
    said = {(named.get(rows), named.get(LIMITS[rows])) for named in told(rows).values()}
    assert len(said) == 1
    assert None not in said.pop()
    assert not [command for command, named in told(rows).items() if others & {*named}]


def test_rows_to_evaluate_on_are_those_of_every_training() -> None:
    """But for `efficiency`, which measures time."""
    said = {command: named.get("--eval-data") for command, named in told(TRAINED).items()}
    assert said.pop("efficiency") is None
    assert len({*said.values()}) == 1


@pytest.mark.parametrize("reads", [Measuring, efficiency, train, TrainingData])
def test_every_function_that_reads_rows_takes_a_limit_and_fields(reads: Callable[..., Any]) -> None:
    if dataclasses.is_dataclass(reads):
        found = {one.name: one.default for one in dataclasses.fields(reads)}
    else:
        found = {n: one.default for n, one in inspect.signature(reads).parameters.items()}
    assert found["limit"] is None
    assert found["fields"] is None
