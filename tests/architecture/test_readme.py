"""What the README and the pages tell people to type exists."""

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.architecture.commands import fault_in, root_command, working_commands
from tests.architecture.import_graph import ROOT

FENCE = re.compile(r"^ *```(?:sh|bash|console)\b[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")
TEXTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
TEXTS += sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
OF_OTHERS = {"--only", "--nproc-per-node"}
"""Of commands that are not deltalens."""
SEPARATORS = {"&&", "||", "|", ";", "&", ">", ">>", "<"}


def typed_commands(markdown: str) -> Iterator[list[str]]:
    """The words of each command in the text's shell blocks, without prompts and comments."""
    for block in FENCE.findall(markdown):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word not in SEPARATORS:
                    words.append(word)
                elif words:
                    yield words
                    words = []


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.MULTILINE))


def faults(markdown: str) -> list[str]:
    """Each command that names a target, command or option that does not exist."""
    found = []
    for words in typed_commands(markdown):
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            found += [
                f"make {name}: no such target" for name in targets if name not in make_targets()
            ]
        elif words[0] == "deltalens" and (fault := fault_in(words[1:])):
            found.append(f"{shlex.join(words)}: {fault}")
    return found


def every_option() -> set[str]:
    """Of all commands, and of the program."""
    root = root_command()
    return {
        flag
        for command in (root, *(command for _, command in working_commands(root)))
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }


def unknown_options(markdown: str) -> set[str]:
    """Options between backticks that no command has. (In blocks, commands of others stand, too.)"""
    named = {found for code in CODE.findall(markdown) for found in OPTION.findall(code)}
    return named - every_option() - {"--help"}


@pytest.mark.parametrize("name", TEXTS)
def test_commands_in_the_text_exist(name):
    assert faults((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", sorted({*TEXTS} - {"CHANGELOG.md"}))
def test_options_in_the_text_exist(name):
    assert unknown_options((ROOT / name).read_text(encoding="utf-8")) <= OF_OTHERS


def test_a_planted_option_is_found():
    text = "`--rate 1`, `--no-such` and `drop-study --nor-this=1`; --not-code\n```\n--block\n```"
    assert unknown_options(text) == {"--no-such", "--nor-this"}


def test_readme_shows_the_two_commands_that_set_everything_up():
    commands = list(typed_commands((ROOT / "README.md").read_text(encoding="utf-8")))
    assert ["make", "demo"] in commands
    assert ["make", "test"] in commands


@pytest.mark.parametrize(
    "line",
    [
        "make no-such-target",
        "$ make demo PYTHON=python3.12 && make no-such-target  # a comment",
        "deltalens no-such-command ft/ base/",
        "deltalens drop-study ft/ base/ --no-such-option 1",
        "deltalens drop-study ft/ base/ \\\n    --no-such-option",
        "deltalens drop-study ft/ base/ --help && deltalens no-such-command",
        "deltalens inspect",
        "deltalens demo probe gmt",
        "deltalens train no-such-method base/ --train-data train.jsonl -o out/",
        "deltalens train gmt base/ --train-data train.jsonl --blocks 1 -o out/",
        "deltalens train gmt base/ -o out/",
        "deltalens demo --no-such-option",
    ],
)
def test_planted_line_is_found(line):
    assert len(faults(f"Text.\n\n```sh\n{line}\n```\n")) == 1


def test_command_that_acts_and_has_others_below_it_is_no_fault():
    assert faults("```sh\ndeltalens demo\ndeltalens demo -q\ndeltalens demo probe -q\n```\n") == []


def test_only_shell_blocks_are_read():
    assert (
        faults("```python\nmake = 1\n```\n`make no-such-target`\n```text\nmake nothing\n```\n")
        == []
    )
