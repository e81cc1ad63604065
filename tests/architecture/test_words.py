"""Words that readers stumbled over are gone from help, docs, messages, docstrings and names."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deltalens.cli.commands import COMMANDS, SWEEPS
from deltalens.cli.main import app
from deltalens.training.methods import trainable
from tests.architecture.import_graph import INSTALLED_AS, ROOT

GONE = (
    r"\bsittings?\b",  # call, process
    r"\b(what|as|than|when) (it )?(was|is|were|are) asked\b",  # specification, settings
    r"\basked (for )?(now|again|more|something|settings)\b",
    r"\b(is|are|was|were) asked for\b",
    r"\bmoments? of (a|each|the) training\b|\bbest moment\b|\bwhich moment\b",  # checkpoint
    r"\bnames? this finds\b",  # matches
    r"\bOf the order of rows\b",
    r"ummaris|ormalis|okenis|nitialis|ptimis|ecognis|uantis|\bcolour|\bbehaviour|\bcatalogue",
    r"--of changed|--strategy salient --|--ratios\b|--normalise|--group \d",  # options of before
)
NAMES = {"asked", "sitting", "summarise", "here", "there"}
"""As names of variables, arguments and functions."""
PATTERN = re.compile("|".join(GONE))
RECORDED = {"normalise"}
"""Keys of records that lie on disks."""
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
HISTORY = {"CHANGELOG.md"}


def sources() -> Iterator[Path]:
    for folder in INSTALLED_AS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def said_in(source: str) -> Iterator[tuple[int, str]]:
    """Every text of a module: messages, docstrings, comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def names_in(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string.lstrip("_") in NAMES:
            yield token.start[0], token.string


def test_no_text_of_ours_has_them() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]}"
        for path in sources()
        for line, text in said_in(path.read_text(encoding="utf-8"))
        if text not in RECORDED and (match := PATTERN.search(text))
    ]
    assert found == []


def test_nothing_is_called_so() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources()
        for line, name in names_in(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_page_has_them() -> None:
    found = [
        f"{path.name}: {match[0]}"
        for path in DOCS
        if path.name not in HISTORY
        for match in PATTERN.finditer(" ".join(path.read_text(encoding="utf-8").split()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "words",
    [
        *([command.name] for command in COMMANDS),
        *(["sweep", command.name] for command in SWEEPS),
        *(["train", method] for method in trainable()),
    ],
    ids=" ".join,
)
def test_no_help_has_them(words: list[str]) -> None:
    done = CliRunner().invoke(app, [*words, "--help-all"], env={"COLUMNS": "100"})
    assert done.exit_code == 0
    assert not PATTERN.search(" ".join(done.output.split()))


@pytest.mark.parametrize(
    "text",
    [
        "Wall time of this sitting's steps.",
        "More than it was asked for.",
        "which moment of a training comes out",
        "All tensors but those whose name this finds.",
        "Of the order of rows, and of random masks.",
        "summarise",
    ],
)
def test_a_planted_one_is_found(text: str) -> None:
    source = f'def f(asked):\n    """{text}"""\n'
    assert any(PATTERN.search(said) for _, said in said_in(source))
    assert [name for _, name in names_in(source)] == ["asked"]
