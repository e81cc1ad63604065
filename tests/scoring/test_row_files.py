"""The same rows, however their file is written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Json, List, load_from_disk

from deltalens.errors import DataError
from deltalens.scoring import row_files
from deltalens.scoring.rows import read_rows
from tests.support.tokenizers import CALL, TOOLS

ROWS: list[dict[str, Any]] = [
    {"prompt": "1+1=", "completion": "2"},
    {"prompt": "é?", "completion": "ü\n!"},
    *({"prompt": f"{n}+0=", "completion": str(n)} for n in range(600)),
]


def lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def as_bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(content)
        return file

    return write


def saved(folder: Path) -> Path:
    Dataset.from_list(ROWS).save_to_disk(folder / "rows", num_shards=3)
    return folder / "rows"


def parquet(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        table = pa.Table.from_pylist(ROWS).append_column("level", pa.array([1] * len(ROWS)))
        pq.write_table(table, folder / name, row_group_size=100)
        return folder / name

    return write


BOM = b"\xef\xbb\xbf"
PLAIN = lines(ROWS)
ARRAY = json.dumps(ROWS, indent=1).encode()
WAYS: dict[str, Callable[[Path], Path]] = {
    "JSON lines": as_bytes("rows.jsonl", PLAIN),
    "no line break at the end": as_bytes("rows.jsonl", PLAIN.rstrip()),
    "a byte-order mark and CRLF": as_bytes("rows.JSONL", BOM + lines(ROWS, "\r\n")),
    "packed lines": as_bytes("rows.jsonl.gz", gzip.compress(PLAIN)),
    "packed lines, written large": as_bytes("rows.JSONL.GZ", gzip.compress(BOM + PLAIN)),
    "packed in two members": as_bytes(
        "rows.jsonl.gz", gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:])
    ),
    "packed without saying so": as_bytes("rows.jsonl", gzip.compress(PLAIN)),
    "an array": as_bytes("rows.json", ARRAY),
    "an array called lines": as_bytes("rows.jsonl", BOM + b"\r\n " + ARRAY),
    "a packed array": as_bytes("rows.json.gz", gzip.compress(ARRAY)),
    "Parquet": parquet("rows.parquet"),
    "Parquet, written large": parquet("rows.PARQUET"),
    "Parquet by another name": parquet("rows.data"),
    "a saved data set": saved,
}


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_the_same_however_they_are_written(way: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = read_rows(WAYS["JSON lines"](tmp_path / "plain"))
    found = read_rows(WAYS[way](tmp_path))
    assert [(row.prompt, row.completion) for row in found.rows] == [
        (row["prompt"], row["completion"]) for row in ROWS
    ]
    assert found.identity == plain.identity


@pytest.mark.parametrize("way", WAYS)
def test_a_limit_takes_the_first_rows_of_each(way: str, tmp_path: Path) -> None:
    assert [row.prompt for row in read_rows(WAYS[way](tmp_path), 2).rows] == ["1+1=", "é?"]


CHAT = [
    {
        "messages": [
            {"role": "user", "content": "é?", "name": None},
            {"role": "assistant", "content": None, "tool_calls": CALL},
        ],
        "tools": TOOLS,
    }
] * 3


def test_nested_parquet_is_read_as_pyarrow_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "chat.parquet"
    pq.write_table(pa.Table.from_pylist(CHAT), file)
    wanted = pq.read_table(file).to_pylist()
    found = read_rows(file).rows
    assert [[*row.prompt, *row.completion] for row in found] == [  # type: ignore[misc]
        one["messages"] for one in wanted
    ]
    assert [list(row.tools or ()) for row in found] == [one["tools"] for one in wanted]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("change", ["none", "shuffled", "columns"])
def test_a_saved_data_set_is_what_datasets_loads(
    as_json: bool, change: str, tmp_path: Path
) -> None:
    kept = Features({"messages": List(Json()), "tools": List(Json())}) if as_json else None
    rows = [{**row, "place": n} for n, row in enumerate(CHAT)]
    made = Dataset.from_list(CHAT, features=kept)
    if not as_json:
        made = Dataset.from_list(rows)
    if change == "shuffled":
        made = made.shuffle(seed=1).select([1, 0])
    if change == "columns":
        made = made.with_format("numpy", columns=["messages"])
    made.save_to_disk(tmp_path / "chat")
    wanted = [one for one in load_from_disk(str(tmp_path / "chat")).with_format(None)]
    found = read_rows(tmp_path / "chat").rows
    assert [[*row.prompt, *row.completion] for row in found] == [  # type: ignore[misc]
        one["messages"] for one in wanted
    ]
    if change != "columns":
        assert [list(row.tools or ()) for row in found] == [one["tools"] for one in wanted]


def test_a_data_set_of_several_splits_asks_for_one(tmp_path: Path) -> None:
    both = DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:2])})
    both.save_to_disk(tmp_path / "both")
    named = f"name one of them: {tmp_path}/both/train, {tmp_path}/both/test"
    with pytest.raises(DataError, match=f"several splits; {named}$"):
        read_rows(tmp_path / "both")
    assert read_rows(tmp_path / "both" / "test").name == "test"
    assert len(read_rows(tmp_path / "both" / "test").rows) == 2


def bomb() -> bytes:
    return gzip.compress(b'{"text": "' + b"0" * (90 << 20))


def spread(folder: Path) -> Path:
    """Some kilobytes that come to hundreds of megabytes."""
    text = pa.array(["0" * (1 << 20)] * 300)
    pq.write_table(pa.table({"text": text}), folder / "x.parquet", compression="zstd")
    return folder / "x.parquet"


def state(folder: Path, content: Any) -> Path:
    (folder / "x").mkdir()
    (folder / "x" / "state.json").write_text(json.dumps(content))
    (folder / "x" / "data.arrow").write_bytes(b"ARROW")
    return folder / "x"


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut short": (
        as_bytes("x.jsonl.gz", gzip.compress(PLAIN)[:-20]),
        r"x\.jsonl\.gz: cannot be decompressed: Compressed file ended",
    ),
    "damaged": (
        as_bytes("x.jsonl.gz", gzip.compress(PLAIN)[:60] + b"\0" * 60),
        "cannot be decompressed: ",
    ),
    "no gzip at all": (as_bytes("x.gz", b"\x1f\x8bhello"), "cannot be decompressed: "),
    "unpacks to too much": (as_bytes("x.jsonl.gz", bomb()), "expands to more than 100 times its"),
    "Parquet that comes to too much": (spread, "expands to more than 100 times its"),
    "packed by another": (
        as_bytes("x.zst", b"\x28\xb5\x2f\xfd0000"),
        "compressed with zstd; decompress",
    ),
    "an array that ends": (as_bytes("x.json", ARRAY[:-5]), r"x\.json: not valid JSON: "),
    "an array of arrays": (as_bytes("x.json", b"[[1], {}]"), "row 1: not a JSON object"),
    "deep": (as_bytes("x.json", b"[" * 100_000), "not valid JSON: "),
    "no Parquet": (as_bytes("x.Parquet", b"hello"), "not a Parquet file: "),
    "no rows": (as_bytes("x.json", b"[]"), "no rows"),
    "a state without files": (lambda folder: state(folder, {}), "does not say which files"),
    "a state that leads elsewhere": (
        lambda folder: state(folder, {"_data_files": [{"filename": "../../x"}]}),
        "is not a file of this folder",
    ),
    "files that are not there": (
        lambda folder: state(folder, {"_data_files": [{"filename": "gone.arrow"}]}),
        "gone.arrow: not an Arrow stream: ",
    ),
    "files that are none": (
        lambda folder: state(folder, {"_data_files": [{"filename": "data.arrow"}]}),
        "data.arrow: not an Arrow stream: ",
    ),
    "a state that is none": (lambda folder: state(folder, []), "not a data set that"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_message(case: str, tmp_path: Path) -> None:
    write, message = BAD[case]
    with pytest.raises(DataError, match=message):
        read_rows(write(tmp_path))


def test_a_line_without_an_end_is_not_held(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(row_files, "LONGEST_LINE", 1000)
    file = as_bytes("x.jsonl", lines(ROWS[:1]) + b" " * 1001)(tmp_path)
    with pytest.raises(DataError, match="line 2 is longer than"):
        read_rows(file)
