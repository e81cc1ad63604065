"""A data set under its own names of fields: the numbers are those of the renamed rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import DeltaLensError
from deltalens.scoring.rows import read_rows
from tests.support.checkpoint_pairs import PairOf
from tests.support.runs import command, succeeds

ROWS = [{"prompt": f"ann {n}+{n}>", "completion": f"{2 * n}"} for n in range(4)]
NAMED = ["--prompt-field", "question", "--completion-field", "answer"]
SHORT = ["--steps", "1", "--batch-size", "2", "--max-length", "40", "--eval-data"]
TRIVIAL = ["--rates", "0.5", "--strategies", "trivial"]

COMMANDS: dict[str, Callable[[Any, Path], list[Any]]] = {
    "drop-study": lambda pair, data: ["drop-study", pair.ft, pair.base, *TRIVIAL],
    "sweep layers-drop": lambda pair, data: ["sweep", "layers-drop", pair.ft, pair.base],
    "landscape": lambda pair, data: ["landscape", pair.ft, pair.base, "--grid", "3"],
    "evaluate": lambda pair, data: ["evaluate", pair.ft, pair.base],
    "salience": lambda pair, data: ["salience", pair.ft, "--metrics", "gradient,snip"],
    "compare": lambda pair, data: ["compare", "l1-mask", pair.ft, *SHORT, data],
    "train": lambda pair, data: ["train", "sft", pair.ft, *SHORT, data],
}
DATA = dict.fromkeys(("compare", "train"), ("--train-data", "--train-limit"))
"""The options of the rows, where they are not those of a command that only measures."""


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def as_on_the_hub(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"question": row["prompt"], "answer": row["completion"], "level": 1} for row in rows]


def numbers(out: Path) -> str:
    table = out / "cells.csv"
    if table.exists():
        return table.read_text()
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return str([line for line in lines if "evaluated" in line])


@pytest.mark.parametrize("name", COMMANDS)
def test_fields_of_another_name_give_the_numbers_of_the_renamed_rows(
    name: str, pair_of: PairOf, tmp_path: Path
) -> None:
    pair, found = pair_of(family="llama"), []
    for folder, rows, named in (("a", ROWS, []), ("b", as_on_the_hub(ROWS), NAMED)):
        data = write(tmp_path / folder, rows)
        out = tmp_path / folder / "out"
        given = COMMANDS[name](pair, data)
        rows_of, limit = DATA.get(name, ("--data", "--limit"))
        succeeds(*given, rows_of, data, *named, limit, 3, "-o", out, "-q")
        found.append(numbers(out))
    assert found[0] == found[1]
    assert "exact_match" in found[0] or name in ("landscape", "salience")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_field_that_is_not_there_is_said_before_any_work(
    name: str, pair_of: PairOf, tmp_path: Path
) -> None:
    data = write(tmp_path / "a", ROWS)
    given = COMMANDS[name](pair_of(family="llama"), data)
    rows_of, _ = DATA.get(name, ("--data", "--limit"))
    result = command(*given, rows_of, data, *NAMED, "-o", tmp_path / "out", "-q")
    assert result.exit_code == 2
    assert "line 1: 'question' is missing, which `fields` names as the prompt" in result.output
    assert not (tmp_path / "out").exists()


def test_the_digest_is_that_of_the_rows_used(tmp_path: Path) -> None:
    plain = read_rows(write(tmp_path / "a", ROWS))
    named = {"prompt": "question", "completion": "answer"}
    hub = write(tmp_path / "b", as_on_the_hub(ROWS))
    assert read_rows(hub, fields=named).identity == plain.identity
    others = [
        read_rows(hub, fields={"prompt": "question", "completion": "question"}),
        read_rows(hub, 3, named),
        read_rows(write(tmp_path / "c", [{**ROWS[0], "completion": "x"}, *ROWS[1:]])),
        read_rows(write(tmp_path / "d", [{"text": r["prompt"] + r["completion"]} for r in ROWS])),
    ]
    assert len({file.digest for file in (plain, *others)}) == 5


def test_another_field_is_another_study(pair_of: PairOf, tmp_path: Path) -> None:
    pair, rows = pair_of(family="llama"), [{**row, "wrong": "7"} for row in ROWS]
    given = ["drop-study", pair.ft, pair.base, *TRIVIAL, "--data", write(tmp_path / "a", rows)]
    succeeds(*given, "-o", tmp_path / "out", "-q")
    result = command(*given, "--completion-field", "wrong", "-o", tmp_path / "out", "-q")
    assert result.exit_code == 2
    assert "data" in result.output


MANY = {
    "prompt": "a",
    "completion": "b",
    "text": "c",
    "messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}],
    "own": "f",
}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, ("a", "b", None)),
        ({"prompt": "own"}, ("f", "b", None)),
        ({"completion": "own"}, ("a", "f", None)),
        ({"text": "own"}, (None, None, "f")),
        ({"messages": "messages"}, ((MANY["messages"][0],), (MANY["messages"][1],), None)),  # type: ignore[index]
    ],
)
def test_a_field_that_is_named_decides_what_a_row_is(
    fields: dict[str, str], wanted: tuple[Any, ...], tmp_path: Path
) -> None:
    (row,) = read_rows(write(tmp_path / "a", [MANY]), fields=fields).rows
    assert (row.prompt, row.completion, row.text) == wanted


def test_a_field_that_rows_do_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="field 'promt': choose from text, prompt,"):
        read_rows(write(tmp_path / "a", ROWS), fields={"promt": "question"})
    with pytest.raises(DeltaLensError, match="limit=0: must be at least 1 row"):
        read_rows(write(tmp_path / "a", ROWS), limit=0)
