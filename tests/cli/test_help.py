"""A help text is one screen: a method's own options and the commonest, none of another method."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from deltalens.catalog.methods import TRAININGS
from deltalens.cli.commands import COMMANDS, SWEEPS
from deltalens.cli.main import app
from deltalens.training.methods import method_class, trainable

MOST_LINES = 40
WORDS = [
    *(["train", method] for method in TRAININGS),
    *(["sweep", command.name] for command in SWEEPS),
    *([command.name] for command in COMMANDS),
    *(["reproduce"], ["demo"], ["train"], ["sweep"]),
]


def help_of(words: list[str], flag: str = "--help") -> str:
    done = CliRunner().invoke(app, [*words, flag], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.output


def flags(settings: set[str]) -> set[str]:
    return {f"--{name.replace('_', '-')}" for name in settings}


def words_of(text: str) -> set[str]:
    return {word.strip(",") for word in text.replace("/", " ").split()}


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_it_is_one_screen(words: list[str]) -> None:
    lines = help_of(words).rstrip().splitlines()
    assert len(lines) <= MOST_LINES
    example = [line for line in lines if line.lstrip().startswith("deltalens ")]
    assert max(len(line) for line in lines if line not in example) <= 80


@pytest.mark.parametrize("method", [*trainable()])
def test_a_methods_options_are_its_own(method: str) -> None:
    own = {*method_class(method).own_settings()}
    foreign = {name for other in TRAININGS for name in method_class(other).own_settings()} - own
    brief, whole = help_of(["train", method]), help_of(["train", method], "--help-all")
    assert flags(own) <= words_of(brief)
    assert not flags(foreign) & words_of(whole)


@pytest.mark.parametrize("command", SWEEPS, ids=lambda command: command.name)
def test_a_sweep_has_no_methods_option(command) -> None:  # type: ignore[no-untyped-def]
    every = {name for method in TRAININGS for name in method_class(method).own_settings()}
    own = {*command.parameters}
    assert not flags(every - own) & words_of(help_of(["sweep", command.name], "--help-all"))


@pytest.mark.parametrize("words", WORDS[:-4], ids=" ".join)
def test_help_all_shows_every_option(words: list[str]) -> None:
    brief, whole = help_of(words), help_of(words, "--help-all")
    assert words_of(brief) - words_of(whole) <= {"more", "options:"} | {str(n) for n in range(60)}
    assert ("--device" in whole) == (
        words[0]
        not in {
            *("inspect", "drop", "plot", "figures", "figure", "monitor", "report"),
            *("methods", "env"),
        }
    )
