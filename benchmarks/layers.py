"""What the cached prefix spares `sweep layers drop`: the sweep over the sweep in full."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import KEPT
from deltalens.studies.layer_drop import sweep_layers_drop
from deltalens.studies.study import StudyWatch

HIDDEN, BLOCKS, VOCABULARY = 512, 8, 1024
ROWS, LENGTH, BATCH_TOKENS = 16, 255, 512
ROUNDS = 5


def run() -> None:
    """A Llama of hidden size 512 with 8 blocks, single blocks, batches of 2 x 256 tokens: whole
    studies, from the two folders to the table, in turns. `time_over_full` is the median of the
    studies' ratios turn by turn, which are `pairs`. Beside it, as the machine disturbs studies of
    half a minute: the ratio of sums of the cells' `medians`, and of their shortest times (`least`).
    """
    program = [sys.executable, "-c", "from benchmarks.layers import compare; compare()"]
    subprocess.run(program, env=os.environ | KEPT, check=True)


def compare() -> None:
    """The benchmark itself, in a process that keeps its heap."""
    facts: dict[str, Any] = {}
    parts: dict[float, list[list[float]]] = {4.0: [], 0.0: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = _write(folder)

        def sweep(cache_gb: float) -> list[float]:
            with tempfile.TemporaryDirectory() as out:
                ends = [time.perf_counter()]
                record = sweep_layers_drop(
                    folder / "ft",
                    folder / "base",
                    Path(out) / "study",
                    data=[data],
                    batch_tokens=BATCH_TOKENS,
                    device="cpu",
                    cache_gb=cache_gb,
                    watch=StudyWatch(on_cell=lambda path, cell: ends.append(time.perf_counter())),
                )
                ends.append(time.perf_counter())
                assert not record.facts["notes"], record.facts["notes"]
                facts[f"table {cache_gb:g}"] = (Path(out) / "study/cells.csv").read_bytes()
                facts.setdefault("cached", record.facts.get("most_cached_bytes"))
            return [end - begun for begun, end in itertools.pairwise(ends)]

        for turn in range(ROUNDS + 1):
            for cache_gb, of_each in parts.items():
                spent = sweep(cache_gb)
                if turn:
                    of_each.append(spent)
    (ours, least), (full, least_full) = (
        [sum(map(of_part, zip(*of_each, strict=True))) for of_part in (statistics.median, min)]
        for of_each in parts.values()
    )
    pairs = sorted(sum(mine) / sum(theirs) for mine, theirs in zip(*parts.values(), strict=True))
    line = {
        "name": "sweep-layers-drop-cached-prefix",
        "ours": round(ours, 2),
        "full": round(full, 2),
        "time_over_full": round(statistics.median(pairs), 3),
        "pairs": [round(pair, 3) for pair in pairs],
        "medians": round(ours / full, 3),
        "least": round(least / least_full, 3),
        "same_table": facts["table 4"] == facts["table 0"],
        "cached_mb": round(facts["cached"] / 1e6, 1),
        "cores": os.cpu_count(),
    }
    print(json.dumps(line), flush=True)


def _write(folder: Path) -> Path:
    """A base, its fine-tune, and rows; none of them has learned anything."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{n}": n for n in range(3, VOCABULARY)}}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        max_position_embeddings=2 * LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = transformers.LlamaForCausalLM(config)
    for name in ("base", "ft"):
        model.save_pretrained(folder / name)  # type: ignore[operator]
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    drawn = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    lines = [json.dumps({"text": " ".join(f"w{n}" for n in row)}) for row in drawn.tolist()]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file
