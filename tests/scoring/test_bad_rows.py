"""Rows that cannot be used are named by file, line and field, before any model is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import deltalens
from deltalens import DeltaLensError
from deltalens.scoring.rows import read_rows
from deltalens.studies.engine import StudyWatch
from tests.support.checkpoint_files import left_in, save, tuned, weights

pytestmark = pytest.mark.bad_input

GOOD = {"prompt": "1+1=", "completion": "2"}


def write(tmp_path: Path, *lines: object) -> Path:
    file = tmp_path / "rows.jsonl"
    texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join(texts) + b"\n")
    return file


def refusal(file: Path, limit: int | None = None) -> str:
    with pytest.raises(DeltaLensError) as caught:
        read_rows(file, limit)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    return message.removeprefix(f"{file}: ")


def fault(tmp_path: Path, line: object) -> str:
    """What is said of one bad row between good ones."""
    message = refusal(write(tmp_path, GOOD, line, GOOD))
    headline, found = message.split("\n  - ")
    assert headline == "1 row cannot be used:"
    assert found.startswith("line 2: ")
    return found.removeprefix("line 2: ")


def saved(folder: Path, state: object) -> Path:
    """A data set as `save_to_disk` writes one, with a state of its own."""
    import pyarrow as pa

    folder.mkdir()
    table = pa.Table.from_pylist([{"text": "once"}, {"text": "twice"}])
    with (
        pa.OSFile(str(folder / "a.arrow"), "wb") as out,
        pa.ipc.new_stream(out, table.schema) as to,
    ):
        to.write_table(table)
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize("columns", [7, "text", {"text": 1}, ["text", 3]])
def test_a_data_set_whose_state_names_no_columns_is_refused(
    tmp_path: Path, columns: object
) -> None:
    state = {"_data_files": [{"filename": "a.arrow"}], "_format_columns": columns}
    with pytest.raises(DeltaLensError, match="_format_columns is not a list of names"):
        read_rows(saved(tmp_path / "rows", state))


def test_a_data_set_whose_state_names_another_column_is_refused(tmp_path: Path) -> None:
    state = {"_data_files": [{"filename": "a.arrow"}], "_format_columns": ["text", "score"]}
    with pytest.raises(DeltaLensError, match=r"a\.arrow: has no column 'score', which state\.json"):
        read_rows(saved(tmp_path / "rows", state))


def test_a_file_that_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl") == "cannot be read: No such file or directory"


def test_a_folder_is_no_file_of_rows(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        "a folder, but not a data set that `save_to_disk` wrote (it has no state.json)"
    )


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \t\r\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(write(tmp_path, content)) == "no rows"


@pytest.mark.parametrize("line", [b"{", b"prompt: 1", b"[" * 100_000, b"9" * 5_000, b"\0"])
def test_a_line_that_is_not_json_is_named(tmp_path: Path, line: bytes) -> None:
    found = fault(tmp_path, line)
    assert found.startswith("not valid JSON: ")
    assert len(found) < 500


@pytest.mark.parametrize("line", [b'{"text": "\xff"}', b"\xfe\xff\x00{", b"\xff\xfe{\x00"])
def test_a_line_that_is_not_utf8_is_named(tmp_path: Path, line: bytes) -> None:
    assert fault(tmp_path, line).startswith("not UTF-8: ")


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    line = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    assert read_rows(write(tmp_path, line)).rows[0].completion == "2"


@pytest.mark.parametrize("line", [[], 3, "text", None])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: object) -> None:
    assert fault(tmp_path, line) == "not a JSON object"


def test_a_row_without_a_known_field_shows_what_it_has(tmp_path: Path) -> None:
    assert fault(tmp_path, {"question": "?", "x" * 10_000: 1}) == (
        f"needs 'text', 'prompt' and 'completion', 'messages', 'prompt', 'chosen' and 'rejected', "
        f"or 'sentence1', 'sentence2' and 'label'; has 'question', {'x' * 40!r}"
    )
    assert fault(tmp_path, {}).endswith("; has no field")


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    assert fault(tmp_path, {"prompt": "1"}) == "'completion' is missing"


@pytest.mark.parametrize("value", [None, 1, ["2"], {"a": 1}, True])
def test_a_field_that_is_no_text_is_named(tmp_path: Path, value: object) -> None:
    assert fault(tmp_path, {**GOOD, "completion": value}) == "'completion' is not a text"


def test_an_empty_target_is_named(tmp_path: Path) -> None:
    assert fault(tmp_path, {**GOOD, "completion": ""}) == "'completion' is empty"
    assert fault(tmp_path, {"text": ""}) == "'text' is empty"


@pytest.mark.parametrize(
    "row",
    [
        {"text": "\ud800"},
        {"prompt": "\udfff", "completion": "1"},
        {"messages": [{"role": "user", "content": "\ud800"}] * 2},
        {"messages": [{"role": "\ud800", "content": "a"}] * 2},
    ],
)
def test_half_a_character_is_named(tmp_path: Path, row: object) -> None:
    assert "is not valid Unicode: surrogates not allowed" in fault(tmp_path, row)


@pytest.mark.parametrize("messages", [None, "hello", [], [{"role": "assistant", "content": "a"}]])
def test_messages_that_are_no_conversation_are_named(tmp_path: Path, messages: object) -> None:
    assert fault(tmp_path, {"messages": messages}) == (
        "'messages' is not a list of at least two messages"
    )


@pytest.mark.parametrize(
    "message", [None, "hello", {"role": "user"}, {"role": "user", "content": 1}]
)
def test_a_message_that_is_none_is_named_by_its_number(tmp_path: Path, message: object) -> None:
    found = fault(tmp_path, {"messages": [{"role": "user", "content": "a"}, message]})
    assert re.fullmatch("'messages': the '(role|content)' of message 2 is not a text", found)


def test_a_conversation_that_ends_with_a_question_is_named(tmp_path: Path) -> None:
    question = {"role": "user", "content": "?"}
    found = fault(tmp_path, {"messages": [question, question]})
    assert found == "'messages' does not end with the assistant's message"


def test_the_first_twenty_faults_come_at_once(tmp_path: Path) -> None:
    lines = [GOOD, *[{"prompt": str(number)} for number in range(25)]]
    message = refusal(write(tmp_path, *lines))
    assert message.startswith("25 rows cannot be used:\n  - line 2: 'completion' is missing\n")
    assert message.count("\n  - ") == 20
    assert message.endswith("- line 21: 'completion' is missing\n  ... and 5 more")


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    assert "line 4: " in refusal(write(tmp_path, GOOD, b"", b"  ", {"prompt": "1"}))


def test_rows_beyond_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, b"not JSON")
    assert len(read_rows(file, limit=1).rows) == 1


def test_rows_of_two_forms_are_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, GOOD, {"text": "a"}))
    assert message == "some rows have a completion and some only a text; split the file"


def test_two_files_of_one_name_are_refused_with_both(tmp_path: Path) -> None:
    ft, base = save(tmp_path / "ft", tuned(weights())), save(tmp_path / "base", weights())
    (tmp_path / "other").mkdir()
    files = [write(tmp_path, GOOD), write(tmp_path / "other", GOOD)]
    with pytest.raises(DeltaLensError) as caught:
        deltalens.drop_study(ft, base, tmp_path / "study", data=files)
    assert str(files[0]) in str(caught.value)
    assert str(files[1]) in str(caught.value)
    assert not (tmp_path / "study").exists()


def test_rows_are_checked_before_anything_is_loaded_or_written(tmp_path: Path) -> None:
    ft, base = save(tmp_path / "ft", tuned(weights())), save(tmp_path / "base", weights())
    data = write(tmp_path, {"prompt": "1"})
    before = left_in(tmp_path)
    stages: list[str] = []
    watch = StudyWatch(stage=lambda name, total: stages.append(name))
    with pytest.raises(DeltaLensError, match="line 1: 'completion' is missing"):
        deltalens.drop_study(ft, base, tmp_path / "study", data=[data], watch=watch)
    assert not stages
    assert left_in(tmp_path) == before


USER, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
ODD: list[tuple[dict[str, object], str]] = [
    ({"prompt": [USER], "completion": "!"}, "'prompt' is not a text"),
    ({"prompt": "?", "completion": [ANSWER]}, "'completion' is not a text"),
    ({"prompt": [], "completion": [ANSWER]}, "'prompt' is not a list of at least one message"),
    ({"prompt": [USER], "completion": []}, "'completion' is not a list of at least one message"),
    (
        {"prompt": [USER], "completion": [USER]},
        "'completion' does not end with the assistant's message",
    ),
    ({"chosen": [USER, ANSWER]}, "'rejected' is missing"),
    ({"chosen": "a", "rejected": [USER, ANSWER]}, "'rejected' is not a text"),
    (
        {"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "else"}, ANSWER]},
        "'chosen' and 'rejected' do not begin with the same message",
    ),
    (
        {"chosen": [USER, ANSWER], "rejected": [USER, USER]},
        "'rejected' does not end with the assistant's message",
    ),
    ({"messages": [USER, ANSWER], "tools": "[{"}, "'tools' is not valid JSON: "),
    ({"messages": [USER, ANSWER], "tools": {"name": "x"}}, "'tools' is not a list of objects"),
    ({"messages": [USER, ANSWER], "tools": ["x"]}, "'tools' is not a list of objects"),
    (
        {"messages": [USER, ANSWER], "chat_template_kwargs": "x"},
        "'chat_template_kwargs' is not an object",
    ),
    (
        {"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]},
        "'messages': message 1 has parts that are not text",
    ),
    (
        {"messages": [{"role": "user", "content": None}, ANSWER]},
        "'messages': the 'content' of message 1 is not a text",
    ),
    (
        {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "\udfff"}]}]},
        "'messages' is not valid Unicode: ",
    ),
    ({"prompt": "?", "text": "a"}, "'completion' is missing"),
]


@pytest.mark.parametrize(("row", "message"), ODD)
def test_a_conversation_that_cannot_be_used_is_named(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    assert fault(tmp_path, row).startswith(message)


def test_a_value_that_json_cannot_say_is_named(tmp_path: Path) -> None:
    """Parquet has dates; a template gets what JSON can say."""
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = {**ANSWER, "at": datetime.date(2024, 1, 1)}
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": [{**USER, "at": None}, turn]}]), file)
    assert "'messages' cannot be written as JSON: " in refusal(file)
