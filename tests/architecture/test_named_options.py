"""A message that names an option names one that the command which says it has."""

from __future__ import annotations

import inspect
import re

import pytest

from tests.architecture.commands import root_command, working_commands
from tests.architecture.option_graph import Definition, Graph

OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z0-9-]*[a-z0-9]")
ELSEWHERE = re.compile(r"`[a-z][a-z -]* --[^`]*`")
"""An option with its command in front, in backticks: `drop-study --include RE`."""

NEVER_SAID = {
    # A study's own one-off drops are of a training that ended finite on the base that it began
    # with, without rescaling, and a sweep over layers does not rescale.
    ("deltalens.io.matching", "--exclude"),
    ("deltalens.studies.selecting", "--exclude"),
    ("deltalens.studies.selecting", "--rescale"),
    # An inspection never goes on with a folder: it writes its own anew.
    ("deltalens.io.records.study", "--fresh"),
    # A study's trainings lie in folders of its own, which are new.
    ("deltalens.io.records.training", "--resume"),
    # Said where `trust` is True or False: commands without the option hand in None.
    ("deltalens.io.pretrained", "--trust-remote-code"),
    # The names of options as their commands are told, not messages.
    ("deltalens.cli.options", "--score-lr"),
}
"""What the graph takes for possible, and why it is not."""


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


def options_named(text: str) -> list[str]:
    return OPTION.findall(ELSEWHERE.sub("", text))


def faults(graph: Graph) -> set[tuple[str, int, str, str]]:
    """Module, line, option and command of every message that a command may say in vain. The demos
    show other commands' lines."""
    found = set()
    for path, command in working_commands(root_command()):
        if path[:1] == ("demo",) or not path:
            continue
        start = inspect.unwrap(command.callback)
        has = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        for node in graph.reached((start.__module__, start.__name__)):
            for line, text in graph.nodes[node].messages:
                for option in options_named(text):
                    if option not in {*has, "--help"}:
                        found.add((node[0], line, option, " ".join(path)))
    return found


def test_every_message_names_options_that_its_command_has(graph: Graph) -> None:
    found = sorted(fault for fault in faults(graph) if (fault[0], fault[2]) not in NEVER_SAID)
    said = [f"{place}:{line} names {one}, which `{c}` lacks" for place, line, one, c in found]
    assert not found, "\n".join(said)


def test_no_exception_is_kept_that_is_not_needed(graph: Graph) -> None:
    assert {(module, option) for module, _, option, _ in faults(graph)} == NEVER_SAID


def test_an_option_named_with_its_command_is_one_of_that_command(graph: Graph) -> None:
    commands = {
        " ".join(path): {name for one in command.params for name in one.opts}
        for path, command in working_commands(root_command())
    }
    for made in graph.nodes.values():
        for _, text in made.messages:
            for quoted in ELSEWHERE.findall(text):
                name, _, rest = quoted.strip("`").removeprefix("deltalens ").partition(" --")
                assert f"--{re.split(r'[ =]', rest)[0]}" in commands[name], quoted


def test_graph_finds_what_is_said_far_below_a_command(graph: Graph) -> None:
    """A message in a function that only lazily imported modules call, and one in a method."""
    start = ("deltalens.cli.drop_study", "drop_study")
    reached = graph.reached(start)
    assert ("deltalens.scoring.loading", "check_fits") in reached
    assert ("deltalens.studies.live", "LiveModel") in reached
    assert ("deltalens.studies.landscape.scan", "scan_landscape") not in reached
    said: Definition = graph.nodes["deltalens.scoring.loading", "check_fits"]
    assert any("--batch-tokens" in text for _, text in said.messages)
