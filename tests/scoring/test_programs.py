"""Generated programs run for as long as they may, and count if they pass their tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltalens.scoring.tasks.files.programs import pass_at_1, passes

RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a * b\n"
TEST = "assert add(2, 3) == 5"


def test_the_share_that_passes() -> None:
    assert pass_at_1([TEST], [[RIGHT, WRONG]]) == 0.5
    assert pass_at_1(TEST, [RIGHT]) == 1.0
    assert pass_at_1([TEST, TEST], [RIGHT, WRONG]) == 0.5


@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "this is no program",
        "input()",
        "x = bytearray(1 << 33)",
        "while True: pass",
    ],
)
def test_a_program_that_does_not_come_to_its_end_fails(program: str) -> None:
    assert not passes(program)


def test_a_program_sees_an_empty_folder_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "1")
    assert passes("import os\nassert not os.listdir()\nassert 'SECRET_TOKEN' not in os.environ")
