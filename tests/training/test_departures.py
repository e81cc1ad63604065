"""What docs/methods.md says of where trainings depart from the papers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalens.methods.baselines import frozen_half
from deltalens.training.run import train
from tests.support.specs import training_spec
from tests.support.training_folders import write_model, write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def departures() -> str:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    return text.split("## Departures from the papers", 1)[1]


def test_trainers_clip_at_one_unless_told_otherwise(departures: str) -> None:
    import trl

    for made in (trl.SFTConfig, trl.DPOConfig):
        assert made(output_dir="unused", use_cpu=True, bf16=False).max_grad_norm == 1.0
    assert "clip the gradient's norm at 1.0" in departures


def test_defaults_are_those_that_are_listed(departures: str) -> None:
    spec = training_spec("mft")
    assert (spec.epochs, spec.batch_size, spec.accumulate) == (1.0, 8, 1)
    assert (spec.weight_decay, spec.warmup) == (0.0, 0.03)
    mft, gmt = spec.settings(), training_spec("gmt")
    assert (mft["blocks"], mft["rank_by"]) == ("all", "magnitude")
    assert (gmt.settings()["scope"], gmt.settings()["apply_to"]) == ("tensor", "gradient")
    assert (gmt.peak_learning_rate, spec.peak_learning_rate) == (2e-5, 3e-3)
    for said in ("| 2 epochs | 1 |", "2e-5, 8 rows, 1, 1 epoch", "--scope global", "`--epochs 2`"):
        assert said in departures


def test_half_freezing_leaves_embeddings_last_norm_and_head(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "m"))
    dims = {name: held.dim() for name, held in model.named_parameters()}
    frozen = frozen_half(list(dims), dims, seed=0)
    assert frozen
    assert all(".layers." in name for name in frozen)


def gradient_norm(folder: Path, rows: list[dict[str, str]], *, by_tokens: bool) -> float:
    """Of one step over micro-batches of a row each, by transformers alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    encode = AutoTokenizer.from_pretrained(folder)
    texts = []
    for row in rows:
        prompt = encode(row["prompt"])["input_ids"]
        answer = encode(row["completion"], add_special_tokens=False)["input_ids"]
        texts.append((prompt, [*answer, encode.eos_token_id]))
    counts = [len(answer) for _, answer in texts]
    for (prompt, answer), count in zip(texts, counts, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        labels = torch.tensor([[*[-100] * len(prompt), *answer]])
        weight = count / sum(counts) if by_tokens else 1 / len(rows)
        (weight * model(input_ids=ids, labels=labels).loss).backward()
    return float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())


def test_accumulation_weights_micro_batches_by_their_targets(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "9+9=", "completion": "18, eighteen"}]
    folder = write_model(tmp_path / "m")
    spec = training_spec("sft", steps=1, batch_size=1, accumulate=2)
    made = train(folder, write_rows(tmp_path / "r.jsonl", rows), tmp_path / "o", spec)
    first, *_ = map(json.loads, (made.path / "metrics.jsonl").read_text().splitlines())
    weighted, plain = (gradient_norm(folder, rows, by_tokens=way) for way in (True, False))
    assert first["grad_norm"] == pytest.approx(weighted, rel=1e-4)
    assert abs(first["grad_norm"] - plain) > 1e-2 * plain
