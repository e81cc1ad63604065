"""What a step over several micro-batches is the mean of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalens import DeltaLensError, load_run
from deltalens.scoring.rows import read_rows
from deltalens.training.rows import tokenized
from deltalens.training.run import train
from deltalens.training.spec import TrainingSpec
from tests.support.training_folders import write_model, write_rows

ROWS = [
    {"prompt": "1+1=", "completion": "2"},
    {"prompt": "2+2=", "completion": "4=4=4=4=4=4"},
    {"prompt": "3+4=", "completion": "7=7=7"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def stepped(folder: Path, data: Path, out: Path, **spec: Any) -> tuple[dict[str, float], float]:
    """One step over all rows, one a micro-batch: each gradient's norm, and the logged loss."""
    settings = TrainingSpec(
        steps=1, batch_size=1, accumulate=len(ROWS), recipe={"max_grad_norm": 0.0}, **spec
    )
    probe = {"every": 1, "mask_ratios": (), "overlap": False}
    train(folder, data, out, settings, probe=probe)
    rows = load_run(out / "run").tensors
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    return dict(zip(rows.tensor, rows.norm, strict=True)), line["loss"]


def by_hand(folder: Path, data: Path, mean: str) -> tuple[dict[str, float], float]:
    """The same of transformers' own loss, its mean over each row's targets."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, _ = tokenized(read_rows(data, None, None), tokenizer, None, False, model)
    counts = [sum(label != -100 for label in row["labels"]) for row in rows]
    assert len(set(counts)) == len(ROWS)
    total = torch.zeros(())
    for row, count in zip(rows, counts, strict=True):
        share = 1 / len(ROWS) if mean == "batch" else count / sum(counts)
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        total = total + share * model(input_ids=ids, labels=labels).loss
    total.backward()
    norms = {n: float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    return norms, float(total.detach())


@pytest.mark.parametrize("mean", ["tokens", "batch"])
def test_a_steps_gradient_is_that_mean(folder: Path, data: Path, tmp_path: Path, mean: str) -> None:
    norms, loss = stepped(folder, data, tmp_path / "out", accumulate_mean=mean)
    wanted, total = by_hand(folder, data, mean)
    assert norms == pytest.approx(wanted, rel=1e-4)
    assert loss == pytest.approx(total, rel=1e-3)
    other, _ = by_hand(folder, data, "tokens" if mean == "batch" else "batch")
    assert norms != pytest.approx(other, rel=1e-2)


def test_tokens_are_what_is_counted_unless_asked(folder: Path, data: Path, tmp_path: Path) -> None:
    plain = stepped(folder, data, tmp_path / "plain")
    assert plain == stepped(folder, data, tmp_path / "tokens", accumulate_mean="tokens")


def test_an_unknown_mean_is_told_with_the_known_ones() -> None:
    with pytest.raises(DeltaLensError, match="accumulate_mean 'rows': choose one of tokens, batch"):
        TrainingSpec(accumulate_mean="rows")
