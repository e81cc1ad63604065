"""What the cached prefix spares `sweep layers-drop`: the sweep over the sweep in full."""

from __future__ import annotations

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
from deltalens.studies.engine import StudyWatch
from deltalens.studies.layer_drop import sweep_layers_drop
from deltalens.studies.measuring import Measuring

HIDDEN, BLOCKS, VOCABULARY = 512, 8, 1024
ROWS, LENGTH, BATCH_TOKENS = 32, 255, 512
ROUNDS = 5


def run() -> None:
    """A Llama of hidden size 512 with 8 blocks, single blocks, batches of 2 x 256 tokens: whole
    studies, from the two folders to the table. Ours and the full one are in processes of their own
    and take turns cell by cell, as the machine's pace changes within one study.
    `time_over_full` is the median of the studies' ratios, which are `pairs`. The rows are 8,160
    tokens, little beside a real test set: with fewer, what a study costs once (loading, reading
    the delta, the replay's trial) weighs more.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = _write(folder)
        sides = [_Side(folder, data, cache_gb) for cache_gb in (4.0, 0.0)]
        rounds = [_by_turns(sides) for _ in range(ROUNDS + 1)][1:]
        for side in sides:
            side.end()
        ours, full = zip(*rounds, strict=True)
        pairs = sorted(mine["seconds"] / theirs["seconds"] for mine, theirs in rounds)
        line = {
            "name": "sweep-layers-drop-cached-prefix",
            "ours": round(statistics.median(one["seconds"] for one in ours), 2),
            "full": round(statistics.median(one["seconds"] for one in full), 2),
            "time_over_full": round(statistics.median(pairs), 3),
            "pairs": [round(pair, 3) for pair in pairs],
            "same_table": len({one["table"] for one in (*ours, *full)}) == 1,
            "cached_mb": round(ours[0]["cached"] / 1e6, 1),
            "cores": os.cpu_count(),
        }
    print(json.dumps(line), flush=True)


class _Side:
    """A process that sweeps again and again, a cell each time it is told to."""

    def __init__(self, folder: Path, data: Path, cache_gb: float) -> None:
        program = "import sys; from benchmarks.layers import sweeps; sweeps(*sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(data), str(cache_gb)],
            env=os.environ | KEPT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def part(self) -> dict[str, Any] | None:
        """Have the next part done; at the end of a study what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the sweep ended with {self._process.wait()}")
        found: dict[str, Any] | None = json.loads(line)
        return found

    def end(self) -> None:
        """No more studies."""
        self._process.communicate()


def _by_turns(sides: list[_Side]) -> list[dict[str, Any]]:
    """A study of each side."""
    while True:
        parts = [side.part() for side in sides]
        found = [part for part in parts if part is not None]
        if found:
            assert len(found) == len(sides), "the studies have different cells"
            return found


def sweeps(folder: str, data: str, cache_gb: str) -> None:
    """What the processes run: each line in is a turn, each line out its end."""
    parts: list[float] = []

    def turn() -> float:
        if not sys.stdin.readline():
            raise SystemExit
        return time.perf_counter()

    def end_part() -> None:
        nonlocal begun
        parts.append(time.perf_counter() - begun)
        print("null", flush=True)
        begun = turn()

    begun = turn()
    while True:
        with tempfile.TemporaryDirectory() as out:
            record = sweep_layers_drop(
                Path(folder) / "ft",
                Path(folder) / "base",
                Path(out) / "study",
                Measuring(
                    data=[Path(data)],
                    batch_tokens=BATCH_TOKENS,
                    device="cpu",
                    watch=StudyWatch(on_cell=lambda path, cell: end_part()),
                ),
                cache_gb=float(cache_gb),
            )
            parts.append(time.perf_counter() - begun)
            assert not record.facts["notes"], record.facts["notes"]
            found = {
                "seconds": sum(parts),
                "cached": record.facts.get("most_cached_bytes"),
                "table": (Path(out) / "study/cells.csv").read_text(),
            }
        print(json.dumps(found), flush=True)
        parts.clear()
        begun = turn()


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
