"""Rows of a data set of the hub, read by `datasets` from a folder that stands for a repository."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import DataError
from deltalens.recipes import Places, Plan, load_recipe, plan
from deltalens.recipes.rows import fetch_rows, missing_rows
from deltalens.recipes.schema import Data, Source

ROWS = {
    "train": [{"q": f"{n}+1?", "a": str(n + 1)} for n in range(5)],
    "test": [{"q": f"{n}*2?", "a": str(2 * n)} for n in range(3)],
}
CHATS = {"train": [{"chat": [{"role": "user", "content": "Hi"}]}]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def repository(path: Path, splits: dict[str, list[dict[str, Any]]]) -> str:
    path.mkdir(parents=True)
    for name, rows in splits.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def source(hub: str, split: str = "train", **fields: str) -> Source:
    fields = fields or {"question": "q", "answer": "a"}
    return Source(hub=hub, split=split, rows=5, megabytes=1, fields=fields)


def planned(out: Path, train: Data, test: Data) -> Plan:
    """real-small with other data sets."""
    recipe = load_recipe("real-small")
    data = {**recipe.data, "gsm8k-train": train, "gsm8k-test": test}
    return plan(replace(recipe, data=data), Places(out=out, base="my-base"))


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def fetched(made: Plan) -> dict[str, list[Any]]:
    return {name: lines(fetch_rows(name, made)) for name in missing_rows(made)}


def test_rows_have_our_names_and_the_first_of_another_set_come_after_it(tmp_path: Path) -> None:
    hub = repository(tmp_path / "hub", ROWS)
    train = Data(tokens=9, sources=(source(hub, "train[2:]"),))
    made = planned(tmp_path / "out", train, Data(tokens=9, sources=(source(hub, "test"),)))
    found = fetched(made)
    assert [*found] == ["gsm8k-train", "gsm8k-test", "gsm8k-60"]
    assert found["gsm8k-train"] == [
        {"question": f"{n}+1?", "answer": str(n + 1)} for n in range(2, 5)
    ]
    assert found["gsm8k-60"] == found["gsm8k-test"]
    assert missing_rows(made) == {}


def test_sources_of_several_forms_are_mixed_as_messages(tmp_path: Path) -> None:
    one, other = repository(tmp_path / "a", ROWS), repository(tmp_path / "b", CHATS)
    mixed = Data(
        tokens=9,
        sources=(source(one, prompt="q", completion="a"), source(other, messages="chat")),
    )
    made = planned(tmp_path / "out", mixed, mixed)
    rows = lines(fetch_rows("gsm8k-train", made))
    assert len(rows) == 6
    assert [{*row} for row in rows] == [{"messages"}] * 6
    assert CHATS["train"][0]["chat"] in [row["messages"] for row in rows]
    pair = [{"role": "user", "content": "0+1?"}, {"role": "assistant", "content": "1"}]
    assert pair in [row["messages"] for row in rows]
    assert rows == lines(fetch_rows("gsm8k-train", made))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("where", "fields", "message"),
    [
        ("hub", {"question": "ask", "answer": "a"}, "no field ask; it has q, a"),
        ("none", {}, "cannot be fetched.*--rows gsm8k-train=FILE takes a local file"),
    ],
)
def test_what_cannot_be_fetched_leaves_no_file(
    tmp_path: Path, where: str, fields: dict[str, str], message: str
) -> None:
    repository(tmp_path / "hub", ROWS)
    data = Data(tokens=9, sources=(source(str(tmp_path / where), **fields),))
    made = planned(tmp_path / "out", data, data)
    with pytest.raises(DataError, match=f"(?s){message}"):
        fetch_rows("gsm8k-train", made)
    assert not [*(tmp_path / "out" / "data").iterdir()]
