"""Which classes rows have, and what of them is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltalens.errors import DataError
from deltalens.scoring.labels import Labels, labels_in, stored_labels
from deltalens.scoring.rows import DataFile, read_rows
from tests.support.training_folders import write_rows

pytestmark = pytest.mark.bad_input


def read(folder: Path, *rows: dict[str, Any], **how: Any) -> DataFile:
    return read_rows(write_rows(folder / "rows.jsonl", rows), **how)


def labeled(folder: Path, *labels: Any) -> DataFile:
    return read(folder, *({"sentence": "a", "label": label} for label in labels))


@pytest.mark.parametrize(
    ("fields", "sentences"),
    [
        ({"sentence": "a"}, ("a",)),
        ({"sentence1": "a"}, ("a",)),
        ({"sentence1": "a", "sentence2": "b"}, ("a", "b")),
        ({"premise": "a", "hypothesis": "b"}, ("a", "b")),
        ({"question": "a", "sentence": "b"}, ("a", "b")),
        ({"question1": "a", "question2": "b"}, ("a", "b")),
    ],
)
def test_sentences_have_the_names_of_glue_s_tasks(
    tmp_path: Path, fields: dict[str, str], sentences: tuple[str, ...]
) -> None:
    (row,) = read(tmp_path, {"idx": 0, **fields, "label": 1}).rows
    assert (row.sentences, row.label, row.answered) == (sentences, 1, False)


def test_fields_of_any_other_name_can_be_named(tmp_path: Path) -> None:
    record = {"text": "a", "other": "b", "stars": "five", "sentence2": "c"}
    one = {"sentence1": "text", "label": "stars"}
    assert read(tmp_path, record, fields=one).rows[0].sentences == ("a", "c")
    two = {**one, "sentence2": "other"}
    assert read(tmp_path, record, fields=two).rows[0].sentences == ("a", "b")
    assert read(tmp_path, record).rows[0].text == "a"


def test_rows_of_other_forms_may_have_a_label_that_is_not_used(tmp_path: Path) -> None:
    plain = {"prompt": "a", "completion": "b"}
    with_label = read(tmp_path, {**plain, "label": True})
    assert (with_label.labeled, with_label.digest) == (False, read(tmp_path, plain).digest)


def test_a_label_is_part_of_what_identifies_rows(tmp_path: Path) -> None:
    labels: list[Any] = [0, 1, 1.0, "1"]
    assert len({labeled(tmp_path, label).digest for label in labels}) == 4


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"sentence": "a"}, "'label' is missing"),
        ({"sentence": "", "label": 0}, "'sentence' is empty"),
        ({"sentence1": "a", "sentence2": "", "label": 0}, "'sentence2' is empty"),
        ({"sentence": 3, "label": 0}, "'sentence' is not a text"),
        ({"sentence": "a", "label": None}, "'label' is neither a number nor a text"),
        ({"sentence": "a", "label": True}, "'label' is neither a number nor a text"),
        ({"sentence": "a", "label": [1]}, "'label' is neither a number nor a text"),
        ({"sentence": "a", "label": float("nan")}, "'label' is no number .*: nan"),
        ({"sentence": "a", "label": -1e31}, "'label' is no number .*: -1e"),
        ({"sentence": "a", "label": 10**400}, "'label' is no number .*: 1000"),
        ({"sentence": "a", "label": ""}, "'label' is empty"),
        ({"label": 1}, "or 'sentence1', 'sentence2' and 'label'; has 'label'"),
    ],
)
def test_a_row_that_lacks_something_is_named(
    tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"line 2: .*{message}"):
        read(tmp_path, {"sentence": "a", "label": 1}, record)


def test_a_file_has_rows_of_one_form(tmp_path: Path) -> None:
    one = {"sentence1": "a", "label": 1}
    with pytest.raises(DataError, match="one sentence and some two"):
        read(tmp_path, one, {**one, "sentence2": "b"})
    with pytest.raises(DataError, match="some rows are labeled sentences and some are not"):
        read(tmp_path, one, {"text": "b"})


def test_whole_numbers_and_names_are_classes_and_other_numbers_scores(tmp_path: Path) -> None:
    assert labels_in([labeled(tmp_path, 2, 0)]) == Labels(("LABEL_0", "LABEL_1", "LABEL_2"))
    assert labels_in([labeled(tmp_path, "no", "maybe", "no")]) == Labels(("maybe", "no"))
    assert labels_in([labeled(tmp_path, 1.0, 2.5)]) == Labels()
    assert labels_in([labeled(tmp_path, 1, 2.5)], "regression") == Labels()
    assert Labels(("maybe", "no")).of(labeled(tmp_path, "no", 0)) == [1, 0]
    assert Labels().of(labeled(tmp_path, 1, 2.5)) == [1.0, 2.5]


@pytest.mark.parametrize(
    ("labels", "objective", "message"),
    [
        ((1, 2.5), None, "(?s)whole numbers in some rows and fractions in others.*regression"),
        ((1.5, 2.5), "classification", "labels are scores, not classes"),
        (("a", 1), None, "(?s)names in some rows and numbers in others.*line 1: 'a'.*line 2: 1"),
        ((1, 1), None, "every label is 1: one class only"),
        (("a", "a"), None, "every label is 'a'"),
        ((0, 10_000), None, "more than 10,000 classes"),
    ],
)
def test_labels_that_are_no_set_of_classes_are_refused(
    tmp_path: Path, labels: tuple[Any, ...], objective: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        labels_in([labeled(tmp_path, *labels)], objective)


@pytest.mark.parametrize(
    ("names", "label", "message"),
    [
        (("a", "b"), 2, "label 2: not one of the 2 classes 0 to 1"),
        (("a", "b"), -1, "GLUE's test rows"),
        (("a", "b"), "c", "label 'c': not one of the classes 'a', 'b'"),
        (("a", "b"), 0.5, "not a class"),
        ((), "a", "label 'a': not a score"),
    ],
)
def test_a_label_that_the_model_does_not_have_is_named(
    tmp_path: Path, names: tuple[str, ...], label: Any, message: str
) -> None:
    with pytest.raises(DataError, match=f"(?s)1 row cannot be used.*line 1: .*{message}"):
        Labels(names).of(labeled(tmp_path, label))


def test_a_checkpoint_s_own_head_says_what_it_predicts() -> None:
    headed = {"architectures": ["BertForSequenceClassification"]}
    assert stored_labels({"architectures": ["BertForMaskedLM"]}) is None
    assert stored_labels({}) is None
    assert stored_labels(headed) == Labels(("LABEL_0", "LABEL_1"))
    named = {**headed, "id2label": {"1": "b", "0": "a"}}
    assert stored_labels(named) == Labels(("a", "b"))
    assert stored_labels({**headed, "id2label": {"0": "LABEL_0"}}) == Labels()
    assert stored_labels({**named, "problem_type": "regression"}) == Labels()
    with pytest.raises(DataError, match="several labels of a row at once"):
        stored_labels({**named, "problem_type": "multi_label_classification"})
    with pytest.raises(DataError, match="keys that are no numbers"):
        stored_labels({**headed, "id2label": {"a": "b", "c": "d"}})
