"""Tokenizers that have less than trl expects, and preferences as it takes them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from deltalens.errors import DeltaLensError
from deltalens.scoring.rows import read_rows
from deltalens.scoring.tokens import encode_preferences
from deltalens.training.rows import collator, preferences
from deltalens.training.run import train
from deltalens.training.spec import TrainingSpec
from tests.support.specs import training_spec
from tests.support.tokenizers import CHATML, KINDS, TOOLS, model, tokenizer, turns
from tests.support.training_folders import write_rows

CHARACTERS = "characters"


def folder(path: Path, *, template: str | None = None, **tokens: str) -> Path:
    """A model whose tokenizer has these special tokens, and no others."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[CHARACTERS](), unk_token="<unk>", **tokens
    )
    made.chat_template = template
    built = model(CHARACTERS, eos_token_id=None, pad_token_id=None)
    built.generation_config.eos_token_id = built.generation_config.pad_token_id = None
    built.save_pretrained(path)
    made.save_pretrained(path)
    return path


def spec(**more: Any) -> TrainingSpec:
    return training_spec(steps=2, batch_size=4, learning_rate=1e-2, **more)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


ROWS = [{"prompt": "what is", "completion": " " + "so" * n} for n in range(1, 9)]


def test_without_padding_and_end_a_training_is_that_with_padding(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    for name, tokens in (("with", {"pad_token": "<pad>"}), ("without", {})):
        given = folder(tmp_path / name, **tokens)
        train(given, rows, tmp_path / f"{name}-out", spec(), eval_data=[rows])
    found = [weights(tmp_path / f"{name}-out") for name in ("with", "without")]
    assert all(torch.equal(found[0][one], found[1][one]) for one in found[0])
    figures = [
        (tmp_path / f"{name}-out" / "metrics.jsonl").read_text() for name in ("with", "without")
    ]
    assert figures[0] == figures[1]


def test_the_padding_token_is_not_written_into_the_model(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    train(folder(tmp_path / "model"), rows, tmp_path / "out", spec())
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("model", "out")
    )
    assert after.get("pad_token_id") == before.get("pad_token_id")


def call(**arguments: Any) -> dict[str, Any]:
    """Of a tool; a table would give all of them each other's arguments."""
    return {"type": "function", "function": {"name": "ann", "arguments": arguments}}


PAIRS: dict[str, list[dict[str, Any]]] = {
    "texts": [{"prompt": f"{n}?", "chosen": f" {n}", "rejected": " no" * n} for n in range(1, 9)],
    "messages": [
        {"prompt": turns(f"{n}?"), "chosen": turns("", str(n))[1:], "rejected": turns("", "no")[1:]}
        for n in range(1, 9)
    ],
    "messages with tools": [
        {
            "prompt": turns(f"{n}?"),
            "chosen": turns("", "so", tool_calls=[call(**{"code" if n % 2 else "is": n})])[1:],
            "rejected": turns("", "no", reasoning_content="?")[1:],
            "tools": TOOLS,
        }
        for n in range(1, 9)
    ],
}


@pytest.mark.parametrize("form", PAIRS)
def test_dpo_trains_on_what_is_measured(form: str, tmp_path: Path) -> None:
    rows = read_rows(write_rows(tmp_path / "rows.jsonl", PAIRS[form]))
    encode, built = tokenizer(CHARACTERS), model(CHARACTERS)
    data, left_out = preferences(rows, encode, 200, built)
    assert left_out == 0
    config = DPOConfig(output_dir=str(tmp_path), report_to=[], bf16=False, use_cpu=True)
    trainer = DPOTrainer(
        model=built,
        ref_model=model(CHARACTERS),
        args=config,
        train_dataset=data,
        data_collator=collator(config, encode, built),
        processing_class=encode,
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    pairs, _ = encode_preferences(rows, encode, 200, built)
    wanted = [pair[n] for n in (0, 1) for pair in pairs.values()]
    for one, ids, mask, target in zip(
        wanted, batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        assert ids[mask.bool()].tolist() == list(one.ids)
        assert ids[target.bool()].tolist() == list(one.ids[one.target :])
    # Padded, where trl does not know of the end: the template's line break is not in the targets.
    assert (
        encode.convert_tokens_to_ids("\n") not in batch["input_ids"][batch["completion_mask"] > 0]
    )


@pytest.mark.parametrize("form", PAIRS)
def test_dpo_begins_at_a_loss_of_ln_2(form: str, tmp_path: Path) -> None:
    tokens = {"eos_token": "</s>"} if form == "texts" else {}
    given = folder(tmp_path / "model", template=CHATML, **tokens)
    rows = write_rows(tmp_path / "rows.jsonl", PAIRS[form])
    train(given, rows, tmp_path / "out", spec(objective="dpo"))
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[1]["loss"] < lines[0]["loss"]


def test_dpo_on_texts_without_an_end_is_refused(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", PAIRS["texts"])
    with pytest.raises(DeltaLensError, match="no end-of-sequence token"):
        train(folder(tmp_path / "model"), rows, tmp_path / "out", spec(objective="dpo"))
    assert not (tmp_path / "out").exists()


def test_preferences_of_two_forms_are_refused(tmp_path: Path) -> None:
    rows = [PAIRS["texts"][0], PAIRS["messages"][0]]
    with pytest.raises(DeltaLensError, match="some preferences are texts and some messages"):
        preferences(
            read_rows(write_rows(tmp_path / "rows.jsonl", rows)),
            tokenizer(CHARACTERS),
            None,
            model(CHARACTERS),
        )
