"""A message that names an option names one that the command which says it has."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from deltalens.cli.generate import Command, command_of
from deltalens.training.methods import method_class, trainable
from tests.architecture.commands import generated_commands
from tests.architecture.option_graph import Definition, Graph, Node

OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z0-9-]*[a-z0-9]")
ELSEWHERE = re.compile(r"`[a-z][^`]* --[^`]*`")
"""An option with its command in front, in backticks: `drop-study --include RE`."""

OF_TRAININGS = (
    "compare",
    *("sweep data-ratio", "sweep density", "sweep layers", "sweep mask-ratio", "sweep masks"),
)
STUDIED = (*OF_TRAININGS, "efficiency")
NEVER_SAID: dict[tuple[str, str], tuple[str, ...]] = {
    # Help texts of `train mft`, not messages.
    ("deltalens.training.methods.weights", "--lr"): ("efficiency",),
    ("deltalens.training.methods.weights", "--score-lr"): STUDIED,
    # Help texts of trainings' options: a report types the commands that made what it shows.
    ("deltalens.api.options", "--lr"): ("monitor", "report"),
    ("deltalens.api.options", "--choose-on"): ("monitor", "report"),
    # Said of a plan, which only --dry-run makes.
    ("deltalens.cli.planning", "--dry-run"): (
        *("drop", "env", "figure", "figures", "inspect", "methods", "monitor", "plot", "report"),
    ),
}
"""What the graph takes for possible of which commands, and why it is not."""
TYPING_OTHERS = ("deltalens.figures.catalog", "deltalens.api.repeating")
"""Modules whose texts are lines of other commands; tests/figures and tests/api type those."""


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


def options_named(text: str) -> list[str]:
    return OPTION.findall(ELSEWHERE.sub("", text))


def starts_of(command: Command) -> list[Node]:
    """Where a command's messages begin: what it calls, what shows the result, and the methods that
    it may train by, whose classes are loaded by name."""
    nodes = [_node(inspect.unwrap(command.function)), _node(command.run)]
    if "method" in command.fixed:
        return [*nodes, _node(method_class(command.fixed["method"]))]
    if "methods" in command.parameters:
        return [*nodes, *(_node(method_class(name)) for name in trainable())]
    return nodes


def _node(thing: Any) -> Node:
    return thing.__module__, thing.__name__


def options_of(command: Command) -> set[str]:
    """What may be typed, both spellings of a flag."""
    made: Any = command_of(command)
    return {name for one in made.params for name in (*one.opts, *one.secondary_opts)}


def faults(graph: Graph) -> set[tuple[str, int, str, str]]:
    """Module, line, option and command of every message that a command may say in vain. The demos
    and recipes run other commands, and some modules type their lines (`TYPING_OTHERS`)."""
    found = set()
    for path, command in generated_commands().items():
        if path in (("demo",), ("reproduce",)):
            continue
        has = options_of(command)
        nodes = {node for start in starts_of(command) for node in graph.reached(start)}
        for node in nodes:
            if node[0] in TYPING_OTHERS:
                continue
            for line, text in graph.nodes[node].messages:
                for option in options_named(text):
                    if option not in {*has, "--help"}:
                        found.add((node[0], line, option, " ".join(path)))
    return found


def test_every_message_names_options_that_its_command_has(graph: Graph) -> None:
    found = sorted(
        fault for fault in faults(graph) if fault[3] not in NEVER_SAID.get((fault[0], fault[2]), ())
    )
    said = [f"{place}:{line} names {one}, which `{c}` lacks" for place, line, one, c in found]
    assert not found, "\n".join(said)


def test_no_exception_is_kept_that_is_not_needed(graph: Graph) -> None:
    kept = {(*said, command) for said, commands in NEVER_SAID.items() for command in commands}
    assert {(module, option, c) for module, _, option, c in faults(graph)} == kept


def test_an_option_named_with_its_command_is_one_of_that_command(graph: Graph) -> None:
    commands = {
        " ".join(path): options_of(command) for path, command in generated_commands().items()
    }
    for made in graph.nodes.values():
        for _, text in made.messages:
            for quoted in ELSEWHERE.findall(text):
                typed, _, rest = quoted.strip("`").removeprefix("deltalens ").partition(" --")
                # The longest name that it begins with; arguments may follow.
                name = max((one for one in commands if f"{typed} ".startswith(f"{one} ")), key=len)
                assert f"--{re.split(r'[ =]', rest)[0]}" in commands[name], quoted


def test_graph_finds_what_is_said_far_below_a_command(graph: Graph) -> None:
    """A message in a function that only lazily imported modules call, and one in a method."""
    command = generated_commands()["drop-study",]
    reached = {node for start in starts_of(command) for node in graph.reached(start)}
    assert ("deltalens.cli.running", "run_study") in reached
    assert ("deltalens.scoring.memory", "check_fits") in reached
    assert ("deltalens.studies.live", "LiveModel") in reached
    assert ("deltalens.studies.landscape.scan", "scan_landscape") not in reached
    said: Definition = graph.nodes["deltalens.scoring.memory", "check_fits"]
    assert any("`batch_tokens`" in text for _, text in said.messages)
