"""Ids and targets are those that trl trains on, up to the answer's end; the loss: transformers'."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Json, List
from transformers import GenerationConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.rows import read_rows
from deltalens.scoring.tokens import encode_preferences, encode_rows
from tests.support.tokenizers import KINDS, ROWS, model, tokenizer, turns

pytestmark = pytest.mark.parity

IGNORED = -100


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def as_dataset(rows: list[dict[str, Any]], names: tuple[str, ...]) -> Dataset:
    """Rows for trl, in which no message gets the keys of another."""
    if not any(isinstance(row.get(names[-1]), list) for row in rows):
        return Dataset.from_list(rows)
    rows = [{"tools": None, **row} for row in rows]
    features = Features({name: List(Json()) for name in (*names, "tools")})
    return Dataset.from_list(rows, features=features)


def as_trl_has_them(
    kind: str, rows: list[dict[str, Any]], out: Path
) -> list[tuple[list[int], ...]]:
    """Ids and labels of `SFTTrainer`; a conversation is a prompt, and its last turn."""
    split = [
        {**row, "prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        if "messages" in row
        else row
        for row in rows
    ]
    for row in split:
        row.pop("messages", None)
    trainer = SFTTrainer(
        model=model(kind),
        args=SFTConfig(
            output_dir=str(out),
            completion_only_loss=True,
            max_length=None,
            report_to=[],
            bf16=False,
            use_cpu=True,
        ),
        train_dataset=as_dataset(split, ("prompt", "completion")),
        processing_class=tokenizer(kind),
    )
    return [(one["input_ids"], one["labels"]) for one in trainer.train_dataset]


def behind_the_end(kind: str, row: dict[str, Any], ids: list[int]) -> int:
    """How many tokens there are behind the one that ends the row, found in trl's own ids."""
    made = tokenizer(kind)
    conversation = "messages" in row or isinstance(row.get("prompt"), list)
    end = made.convert_tokens_to_ids("<|im_end|>") if conversation else made.eos_token_id
    behind = list(itertools.takewhile(lambda token: token != end, reversed(ids)))
    if not conversation:
        # The text's own end, not that of the tokenizer, which puts another one behind it.
        return 1 if ids[-2:] == [end, end] else 0
    return len(behind)


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_targets_are_trls_up_to_the_end(kind: str, form: str, tmp_path: Path) -> None:
    rows, cut = ROWS[form], 0
    data = read_rows(write(tmp_path / "rows.jsonl", rows))
    ours, left_out = encode_rows(data, tokenizer(kind), None, model(kind))
    theirs = as_trl_has_them(kind, rows, tmp_path)
    assert left_out == 0
    for row, one, (ids, labels) in zip(rows, ours, theirs, strict=True):
        behind = behind_the_end(kind, row, ids)
        end = len(ids) - behind
        cut += behind
        assert list(one.ids) == ids[:end], row
        # The first token of all has nothing before it that could predict it.
        targets = [place >= one.target for place in range(1, end)]
        assert targets == [label != IGNORED for label in labels[1:end]], row
    # Behind it: the template's line break, which a WordPiece has no token for; or, of a text, the
    # end that only WordPiece's tokenizer puts behind every text.
    assert (cut > 0) == (form.endswith("messages") != (kind == "WordPiece"))


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_transformers_on_trls_tokens(kind: str, form: str, tmp_path: Path) -> None:
    rows, made = ROWS[form], model(kind)
    data = read_rows(write(tmp_path / "rows.jsonl", rows))
    total = count = 0
    for row, (ids, labels) in zip(rows, as_trl_has_them(kind, rows, tmp_path), strict=True):
        end = len(ids) - behind_the_end(kind, row, ids)
        wanted = torch.tensor([labels[:end]])
        there = int((wanted[:, 1:] != IGNORED).sum())
        with torch.inference_mode():
            loss = made(input_ids=torch.tensor([ids[:end]]), labels=wanted).loss
        total, count = total + float(loss) * there, count + there
    found = Scoring(data, made, tokenizer(kind), 4096).measure(made)["loss"]
    assert found.value == pytest.approx(total / count, rel=1e-5)


def sums(kind: str) -> list[dict[str, Any]]:
    """Two hundred rows, some of them texts and some conversations."""
    rows: list[dict[str, Any]] = []
    for n in range(100):
        spec, answer = f"what is {n:02}?", f" {n // 10} of {n // 20}"
        rows.append({"prompt": spec, "completion": answer})
        rows.append({"messages": turns(spec, answer.strip())})
    return rows


@pytest.mark.parametrize("kind", ["a space in front", "Metaspace first", "characters"])
def test_exact_match_is_what_greedy_generation_gives(kind: str, tmp_path: Path) -> None:
    made, encode, rows = model(kind), tokenizer(kind), sums(kind)
    data = read_rows(write(tmp_path / "rows.jsonl", rows))
    tokens, _ = encode_rows(data, encode, None, made)
    optimizer = torch.optim.AdamW(made.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        some = [tokens[n] for n in torch.randperm(120, generator=generator)[:24].tolist()]
        longest = max(len(one.ids) for one in some)
        ids = torch.full((len(some), longest), encode.pad_token_id)
        labels = torch.full_like(ids, IGNORED)
        for place, one in enumerate(some):
            ids[place, : len(one.ids)] = torch.tensor(one.ids)
            labels[place, one.target : len(one.ids)] = torch.tensor(one.ids[one.target :])
        made(
            input_ids=ids, attention_mask=(ids != encode.pad_token_id).long(), labels=labels
        ).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    scoring = Scoring(data, made, encode, 512)
    stops = [encode.eos_token_id, encode.convert_tokens_to_ids("<|im_end|>")]
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=40, eos_token_id=stops, pad_token_id=encode.pad_token_id
    )
    right, answered = [], []
    for one in tokens:
        prompt = torch.tensor([one.ids[: one.target]])
        out = made.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
        )
        wanted, got = list(one.ids[one.target :]), out[0, one.target :].tolist()
        right.append(got == wanted)
        numbers = [re.findall(r"\d", encode.decode(ids)) for ids in (got, wanted)]
        answered.append(numbers[0][-1:] == numbers[1][-1:])
    assert len(right) == 200
    assert 0.1 < sum(right) / 200 < 0.9, "some rows should be right and some wrong"
    assert scoring.measure(made)["exact_match"].value == pytest.approx(sum(right) / 200)
    by_pattern = Scoring(data, made, encode, 512, re.compile(r"\d")).measure(made)
    assert by_pattern["exact_match"].value == pytest.approx(sum(answered) / 200)
    assert 0.1 < sum(answered) / 200 < 0.9


ANSWERS: dict[str, list[dict[str, Any]]] = {
    "texts": [
        {"prompt": "The code of ann is", "chosen": " A0", "rejected": " B1 or A0"},
        {"prompt": "the un", "chosen": "known is A0", "rejected": " is 7"},
    ],
    "texts that begin with the prompt": [
        {"chosen": "The code of ann is A0", "rejected": "The code of ann is B1"},
        {"chosen": "what is it? 19", "rejected": "what is it? it is 7"},
    ],
    "messages": [
        {"prompt": turns("ann?"), "chosen": turns("", "A0")[1:], "rejected": turns("", "B1")[1:]},
        {
            "prompt": turns("a", "b", "c"),
            "chosen": turns("", "it")[1:],
            "rejected": turns("", "7")[1:],
        },
    ],
    "messages that begin with the prompt": [
        {"chosen": turns("ann?", "A0"), "rejected": turns("ann?", "B1")},
        {"chosen": turns("a", "b", "c", "it is"), "rejected": turns("a", "b", "c", "it", name="x")},
    ],
}


@pytest.mark.parametrize("form", ANSWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_preferences_are_trls_up_to_the_end(kind: str, form: str, tmp_path: Path) -> None:
    rows = ANSWERS[form]
    data = read_rows(write(tmp_path / "rows.jsonl", rows))
    ours, left_out = encode_preferences(data, tokenizer(kind), None, model(kind))
    assert left_out == 0
    names = ("prompt", "chosen", "rejected") if "prompt" in rows[0] else ("chosen", "rejected")
    trainer = DPOTrainer(
        model=model(kind),
        ref_model=model(kind),
        args=DPOConfig(
            output_dir=str(tmp_path), max_length=None, report_to=[], bf16=False, use_cpu=True
        ),
        train_dataset=as_dataset(rows, names),
        processing_class=tokenizer(kind),
    )
    for row, (chosen, rejected), one in zip(
        rows, ours.values(), trainer.train_dataset, strict=True
    ):
        row = {"messages": row["chosen"]} if isinstance(row["chosen"], list) else row
        for mine, name in ((chosen, "chosen_ids"), (rejected, "rejected_ids")):
            ids = one["prompt_ids"] + one[name]
            end = len(ids) - behind_the_end(kind, row, ids)
            assert list(mine.ids) == ids[:end]
            assert mine.target == max(1, len(one["prompt_ids"]))
