"""Every command explains itself."""

import pytest
from typer.testing import CliRunner

from tests.architecture.commands import root_command, working_commands


@pytest.fixture(scope="module")
def commands():
    return dict(working_commands(root_command()))


def help_of(path: tuple[str, ...]) -> str:
    from deltalens.cli.main import app

    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, f"deltalens {' '.join(path)} --help: {result.output}"
    return result.output


def test_there_are_commands_and_the_program_names_each(commands):
    overview = help_of(())
    assert commands
    assert [path for path in commands if path[0] not in overview] == []


def test_every_help_shows_an_example_to_copy(commands):
    without = []
    for path in commands:
        lines = [line.strip() for line in help_of(path).splitlines()]
        if not any("Example" in line for line in lines) or not any(
            line.startswith(f"deltalens {' '.join(path)}") for line in lines
        ):
            without.append(" ".join(path))
    assert without == []


def test_every_option_and_argument_has_help_text(commands):
    silent = [
        f"{' '.join(path)} {parameter.opts[0]}"
        for path, command in commands.items()
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []
