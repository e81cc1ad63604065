"""One set of options for data, in every command and every function that reads rows."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from deltalens.studies.drop_study import drop_study
from deltalens.studies.efficiency import efficiency
from deltalens.studies.landscape.scan import scan_landscape
from deltalens.studies.layer_drop import sweep_layers_drop
from deltalens.studies.training_plans import TrainingData
from deltalens.training.run import train
from tests.architecture.commands import root_command, working_commands

OPTIONS = ("--limit", "--prompt-field", "--completion-field", "--messages-field", "--text-field")


def helps() -> dict[str, dict[str, str]]:
    """Each command with `--data`: its options' help."""
    found = {}
    for path, command in working_commands(root_command()):
        named = {parameter.opts[0]: parameter.help for parameter in command.params}
        if "--data" in named:
            found[" ".join(path)] = named
    return found


def test_all_commands_that_read_rows_are_looked_at() -> None:
    wanted = {"drop-study", "landscape", "train", "compare", "efficiency", "sweep layers drop"}
    assert wanted <= set(helps())


@pytest.mark.parametrize("option", OPTIONS)
def test_a_data_option_means_the_same_in_every_command(option: str) -> None:
    assert len({named.get(option) for named in helps().values()}) == 1


@pytest.mark.parametrize(
    "reads", [drop_study, efficiency, scan_landscape, sweep_layers_drop, train, TrainingData]
)
def test_every_function_that_reads_rows_takes_a_limit_and_fields(reads: Callable[..., Any]) -> None:
    if dataclasses.is_dataclass(reads):
        found = {one.name: one.default for one in dataclasses.fields(reads)}
    else:
        found = {n: one.default for n, one in inspect.signature(reads).parameters.items()}
    assert found["limit"] is None
    assert found["fields"] is None
