"""What most trainings in these tests begin with: written once for each module of tests."""

from pathlib import Path

import pytest

from tests.support.training_folders import write_model, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer."""
    return write_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty sums."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
