"""What other libraries raise, as one message of ours."""

from __future__ import annotations

import pytest

from deltalens.errors import CheckpointError, DeltaLensError, describe_error, errors_from


def panic(text: str) -> BaseException:
    """What a library written in Rust raises when it panics: no `Exception`."""
    return type("PanicException", (BaseException,), {})(text)


@pytest.mark.parametrize("error", [panic("index out of range"), RecursionError("too deep")])
def test_whatever_a_library_raises_becomes_one_message(error: BaseException) -> None:
    with (
        pytest.raises(CheckpointError, match=r"^a: b says: \w+: \w+") as caught,
        errors_from("b", "a", kind=CheckpointError),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_what_ends_a_program_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), errors_from("b", "a"):
        raise error


def test_an_error_that_quotes_its_whole_file_is_cut() -> None:
    with pytest.raises(DeltaLensError) as caught, errors_from("b", "a"):
        raise ValueError("x" * 50_000_000)
    assert 500 < len(str(caught.value)) < 5_000
    assert str(caught.value).endswith("...")


def test_a_reason_is_one_line() -> None:
    assert describe_error(ValueError("one\n  two")) == "ValueError: one two"
    assert describe_error(KeyError()) == "KeyError"
