"""Configurations, tokenizers and templates that are damaged, or ask for what nobody has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltalens.errors import DataError, DeltaLensError
from deltalens.io.checkpoint import open_checkpoint
from deltalens.scoring.deadline import Deadline
from deltalens.scoring.loading import LoadedModel, load_model
from deltalens.scoring.rows import DataFile, read_rows
from deltalens.scoring.tokens import encode_rows, padding_of
from tests.support.checkpoint_files import save_llama_pair

pytestmark = pytest.mark.bad_input

ROW = {"prompt": "a", "completion": "b"}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def change(file: Path, with_it: Callable[[dict[str, Any]], object]) -> None:
    held = json.loads(file.read_text())
    with_it(held)
    file.write_text(json.dumps(held))


def load(folder: Path) -> LoadedModel:
    return load_model(open_checkpoint(folder), torch.float32, torch.device("cpu"))


def rows_of(folder: Path, row: object) -> DataFile:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return read_rows(folder / "rows.jsonl")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a small Llama and its tokenizer."""
    save_llama_pair(tmp_path)
    return tmp_path / "ft"


@pytest.mark.parametrize(
    ("setting", "number", "said"),
    [
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1,000,000,000, but the checkpoint has"),
        ("n_layers", 10**400, r"n_layers is above 2\^64"),
        ("num_labels", 10**9, "num_labels is 1,000,000,000"),
        ("num_local_experts", 10**9, "none wider than"),
        ("vocab_size", 10**9, r"describes a model of [\d,]+ entries, but the checkpoint has"),
        ("hidden_size", 1 << 20, "describes other shapes"),
    ],
)
def test_a_configuration_of_far_more_than_the_checkpoint_is_refused_before_it_is_made(
    model: Path, setting: str, number: int, said: str
) -> None:
    change(model / "config.json", lambda config: config.update({setting: number}))
    begun = time.perf_counter()
    with pytest.raises(DeltaLensError, match=said):
        load(model)
    assert time.perf_counter() - begun < 10


def test_a_length_without_weights_is_no_reason_to_refuse(model: Path) -> None:
    change(model / "config.json", lambda c: c.update(max_position_embeddings=10**12))
    assert load(model).model.config.max_position_embeddings == 10**12  # type: ignore[union-attr]


def no_charsmap(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


def short_merge(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"] = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}


def no_such_special(tokenizer: dict[str, Any]) -> None:
    single = [{"SpecialToken": {"id": "zz", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] |= {"single": single, "special_tokens": {}}


@pytest.mark.parametrize("damage", [no_charsmap, short_merge])
def test_a_tokenizer_that_panics_is_named(
    model: Path, damage: Callable[[dict[str, Any]], object], capfd: pytest.CaptureFixture[str]
) -> None:
    change(model / "tokenizer.json", damage)
    capfd.readouterr()
    with pytest.raises(DeltaLensError, match="ft: transformers cannot load it: PanicException"):
        load(model)
    assert "panicked" not in capfd.readouterr().err


def test_a_tokenizer_that_panics_at_a_text_is_said_with_the_row(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(model / "tokenizer.json", no_such_special)
    tokenizer = load(model).tokenizer
    capfd.readouterr()
    with pytest.raises(DataError, match=r"line 1: the tokenizer says: PanicException"):
        encode_rows(rows_of(model, ROW), tokenizer, None)
    assert "panicked" not in capfd.readouterr().err


def test_tokens_that_the_model_does_not_know_are_refused_with_the_row(model: Path) -> None:
    loaded = load(model)
    embedding = loaded.model.get_input_embeddings().weight  # type: ignore[operator]
    embedding.data = embedding.data[:3]
    with pytest.raises(DataError, match=r"line 1: .* token \d+, but the model has only 3"):
        encode_rows(
            rows_of(model, {"prompt": "yz", "completion": "z"}),
            loaded.tokenizer,
            None,
            loaded.model,
        )


def test_a_padding_token_beyond_the_embedding_is_not_used(model: Path) -> None:
    loaded = load(model)
    loaded.model.config.pad_token_id = 10**6  # type: ignore[union-attr]
    loaded.tokenizer.pad_token = None  # type: ignore[union-attr]
    assert padding_of(loaded.tokenizer, loaded.model) == 0


TEMPLATES = {
    "endless": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "takes more than 5 s",
    ),
    "range": ("{% for i in range(10 ** 9) %}x{% endfor %}", "the chat template says: OverflowErr"),
    "unsafe": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "undefined": ("{{ a.b.c }}", "UndefinedError"),
    "no filter": ("{{ messages | nothing }}", "TemplateAssertionError"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_fails_or_has_no_end_is_said_with_the_row(model: Path, name: str) -> None:
    template, said = TEMPLATES[name]
    tokenizer = load(model).tokenizer
    assert tokenizer is not None
    tokenizer.chat_template = template
    begun = time.perf_counter()
    with pytest.raises(DataError, match=said):
        encode_rows(rows_of(model, {"messages": TALK}), tokenizer, None)
    assert time.perf_counter() - begun < 20


def test_a_deadline_leaves_nothing_behind() -> None:
    def long() -> None:
        with Deadline(0.1) as deadline:
            deadline.restart("a loop")
            while True:
                pass

    for _ in range(5):
        with pytest.raises(DataError, match="a loop takes more than"):
            long()
    with Deadline(0.2) as deadline:
        for _ in range(10):
            deadline.restart("short")
            time.sleep(0.05)


def test_ctrl_c_passes_through_a_tokenizer(model: Path) -> None:
    class Interrupted:
        chat_template = eos_token = None

        def __call__(self, *given: object, **more: object) -> object:
            raise KeyboardInterrupt

        def __getattr__(self, name: str) -> Any:
            return {} if name == "added_tokens_decoder" else [] if name.endswith("s") else None

    with pytest.raises(KeyboardInterrupt):
        encode_rows(rows_of(model, ROW), Interrupted(), None)


def test_a_command_says_one_line_of_a_panic(model: Path) -> None:
    change(model / "tokenizer.json", no_charsmap)
    (model.parent / "rows.jsonl").write_text(json.dumps(ROW))
    spec = ["--data", "rows.jsonl", "--rates", "0.5", "-o", "study", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "deltalens.cli.main", "drop-study", "ft", "base", *spec],
        cwd=model.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "RUST_BACKTRACE": "1"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "transformers cannot load it: PanicException" in done.stderr
    assert not (model.parent / "study").exists()
