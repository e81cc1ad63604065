"""Files of a few kilobytes that come to gigabytes: refused with the number, or read in pieces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deltalens.errors import DataError
from deltalens.scoring.rows import read_rows

pytestmark = pytest.mark.bad_input

MANY = 1_000_000
ALLOWED = 200 << 20
"""Bytes above what the process had before."""


def measured(path: Path, limit: int | None) -> str:
    """What reading a file comes to in a process of its own: rows or a refusal, and its memory."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.reading", str(path), str(limit or 0)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    peak, _, said = done.stdout.partition(" ")
    assert int(peak) < ALLOWED, done.stdout
    return said.strip()


def one_text_meant_often(file: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * MANY, pa.int32()), ["x" * 1_000])
    pq.write_table(pa.table({"text": texts.cast(pa.string())}), file, compression="zstd")


def one_long_text_meant_often(file: Path) -> None:
    texts = pa.array([0] * 1_000, pa.int32()), pa.array(["x" * 5_000_000])
    table = pa.table({"text": pa.DictionaryArray.from_arrays(*texts)})
    pq.write_table(table, file, compression="zstd")


def one_long_text(file: Path) -> None:
    table = pa.table({"text": pa.array(["x" * 300_000_000, "y"])})
    pq.write_table(table, file, compression="zstd")


def one_long_list(file: Path) -> None:
    turn = {"role": "user", "content": "x" * 100}
    table = pa.table({"messages": [[turn] * 2_000_000]})
    pq.write_table(table, file, compression="zstd")


@pytest.mark.parametrize("limit", [2, None])
@pytest.mark.parametrize("make", [one_long_text_meant_often, one_long_text, one_long_list])
def test_a_small_parquet_file_of_gigabytes_is_refused_with_the_number(
    tmp_path: Path, make: object, limit: int | None
) -> None:
    make(tmp_path / "a.parquet")  # type: ignore[operator]
    said = measured(tmp_path / "a.parquet", limit)
    assert "expands to more than 100 times its" in said
    assert "), which real data does not do" in said


def test_of_a_table_only_what_is_asked_is_unpacked(tmp_path: Path) -> None:
    one_text_meant_often(tmp_path / "a.parquet")
    assert measured(tmp_path / "a.parquet", 2) == "2 rows"
    assert "expands to more" in measured(tmp_path / "a.parquet", None)


def save(folder: Path, column: pa.Array, compression: str | None = None) -> Path:
    """A folder as `save_to_disk` makes one."""
    folder.mkdir()
    (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    table = pa.table({"text": column})
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (
        pa.OSFile(str(folder / "a.arrow"), "wb") as out,
        pa.ipc.new_stream(out, table.schema, options=options) as stream,
    ):
        stream.write_table(table)
    return folder


def test_a_saved_data_set_of_one_text_meant_often_is_refused(tmp_path: Path) -> None:
    indices = pa.array([0] * 10_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 500_000]))
    assert "expands to more" in measured(save(tmp_path / "a", column), None)
    assert "expands to more" in measured(save(tmp_path / "b", column), 2)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_saved_data_set_that_is_packed_is_refused(tmp_path: Path, compression: str) -> None:
    folder = save(tmp_path / "a", pa.array(["x" * 100_000_000]), compression)
    assert "a.arrow: its batches are compressed" in measured(folder, 2)
    assert read_rows(save(tmp_path / "b", pa.array(["x", "y"]))).rows[1].text == "y"


def test_columns_that_mean_values_more_than_once_are_counted_or_refused(tmp_path: Path) -> None:
    views = pa.array(["x" * 20, "y"], pa.string_view())
    assert [row.text for row in read_rows(save(tmp_path / "a", views)).rows] == ["x" * 20, "y"]
    ends = pa.RunEndEncodedArray.from_arrays(pa.array([1 << 30], pa.int32()), pa.array(["x"]))
    with pytest.raises(DataError, match=r"columns of type run_end_encoded.* cannot be read"):
        read_rows(save(tmp_path / "b", ends), limit=2)


def test_texts_that_are_stored_once_are_read_as_they_are(tmp_path: Path) -> None:
    """Dictionaries, nulls in lists, and slices of them."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": talk * (1 + n % 3), "kind": "k", "none": None} for n in range(1_000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    found = read_rows(tmp_path / "a.parquet").rows
    assert [[*row.prompt, *row.completion] for row in found] == [row["messages"] for row in rows]  # type: ignore[misc]
