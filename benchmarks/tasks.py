"""What the lm-evaluation-harness costs beside the model, in the first cell of a study and later."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import deltalens
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.tasks.finding import FILES, LOCAL_FILES
from deltalens.scoring.tasks.live_lm import LiveLM, TokenMemo
from deltalens.scoring.tasks.scoring import TaskScoring

LIMIT = 50


def run() -> None:
    """A drop study on GSM8K, 50 documents, of a tiny Llama whose tokens are bytes, with 2,048
    positions: seconds beyond the model's own in the first cell (with building), in later ones, and
    in a call of the harness that builds its requests itself.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        tokenizer = _tokenizer()
        ft, base = (
            _save(folder / name, tokenizer, seed) for seed, name in enumerate(("ft", "base"))
        )
        rows = folder / "gsm8k.jsonl"
        rows.write_text("".join(json.dumps(_row(n)) + "\n" for n in range(200)))
        clock = _Clock()
        with clock:
            deltalens.drop_study(
                ft,
                base,
                folder / "study",
                tasks=f"gsm8k={rows}",
                limit=LIMIT,
                batch_size=25,
                rates="0:1:0.5",
                strategies="trivial",
            )
        first, *later = clock.overheads
        model: Any = LlamaForCausalLM.from_pretrained(ft)
        alone = _alone(model, tokenizer, rows)
    line = {
        "name": "tasks-harness-overhead",
        "cells": len(clock.overheads),
        "model_seconds": round(statistics.median(clock.model_seconds), 3),
        "first_cell_seconds": round(clock.prepared + first, 3),
        "later_cell_seconds": round(statistics.median(later), 4),
        "later_over_first": round(max(later) / (clock.prepared + first), 4),
        "harness_alone_seconds": round(alone, 3),
        "later_over_harness_alone": round(statistics.median(later) / alone, 4),
    }
    print(json.dumps(line), flush=True)


class _Clock:
    """Times the building of requests, and each measurement beyond the model."""

    def __init__(self) -> None:
        self.prepared = 0.0
        self.overheads: list[float] = []
        self.model_seconds: list[float] = []
        self._prepare, self._measure = TaskScoring.__init__, TaskScoring.measure

    def __enter__(self) -> None:
        def prepared(this: TaskScoring, tasks: Any, loaded: LoadedModel) -> None:
            begun, built = time.perf_counter(), tasks.built.seconds
            self._prepare(this, tasks, loaded)
            self.prepared = built + time.perf_counter() - begun

        def measured(this: TaskScoring, model: Any, *report: Any) -> Any:
            begun = time.perf_counter()
            found = self._measure(this, model, *report)
            overhead = this.tasks.overheads[-1]
            self.overheads.append(overhead)
            self.model_seconds.append(time.perf_counter() - begun - overhead)
            return found

        TaskScoring.__init__, TaskScoring.measure = prepared, measured  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        TaskScoring.__init__, TaskScoring.measure = self._prepare, self._measure  # type: ignore[method-assign]


def _alone(model: Any, tokenizer: Any, rows: Path) -> float:
    """Seconds beyond the model's own of a call of the harness, with an index of our tasks alone."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    lm = LiveLM(model, tokenizer, 25, TokenMemo())
    begun = time.perf_counter()
    metadata = {LOCAL_FILES: {"gsm8k": [str(rows)]}}
    manager = TaskManager(include_path=str(FILES), include_defaults=False, metadata=metadata)
    lm_eval.simple_evaluate(
        model=lm, tasks=["gsm8k"], task_manager=manager, limit=LIMIT, log_samples=False
    )
    return time.perf_counter() - begun - lm.model_seconds


def _tokenizer() -> PreTrainedTokenizerFast:
    special = ["<s>", "</s>", "<pad>"]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _save(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _row(number: int) -> dict[str, str]:
    return {
        "question": f"Ann has {number} eggs and sells {number % 7} of them at 2 dollars each. "
        "How many dollars does she have in the evening, if she began the day with none?",
        "answer": f"She sells {number % 7} eggs for 2 dollars each.\n#### {2 * (number % 7)}",
    }
