"""`deltalens drop` as a whole process, beside mergekit's `ties` and `dare_linear`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Run, report, run_process

ROUNDS = 3


def run() -> None:
    """70 % of the delta of a bf16 pair of 254 M parameters in 3 shards, per tensor."""
    with tempfile.TemporaryDirectory(prefix="deltalens-bench-") as name:
        folder = Path(name)
        ft, base = make_pair(folder)
        for strategy, peer in (("trivial", "ties"), ("random", "dare_linear")):
            _compare(folder, ft, base, strategy, peer)


def _compare(folder: Path, ft: Path, base: Path, strategy: str, peer: str) -> None:
    ours, theirs = [], []
    recipe = folder / f"{peer}.yaml"
    recipe.write_text(
        f"merge_method: {peer}\nbase_model: {base}\ndtype: bfloat16\n"
        f"models:\n  - model: {ft}\n    parameters: {{density: 0.3, weight: 1.0}}\n"
    )
    for _ in range(ROUNDS):
        out = folder / "ours"
        scripts = Path(sys.executable).parent
        arguments = ["--strategy", strategy, "--rate", "0.7", "--scope", "tensor", "-o", str(out)]
        ours.append(
            run_process([str(scripts / "deltalens"), "drop", str(ft), str(base), *arguments])
        )
        shutil.rmtree(out)
        out = folder / "theirs"
        theirs.append(run_process([str(scripts / "mergekit-yaml"), str(recipe), str(out)]))
        shutil.rmtree(out)
    report(
        f"drop-254M-{strategy}",
        [run.seconds for run in ours],
        [run.seconds for run in theirs],
        peer_is=f"mergekit {peer}",
        ours_peak_mb=_peak(ours),
        peer_peak_mb=_peak(theirs),
    )


def _peak(runs: list[Run]) -> float:
    return round(max(run.peak_mb for run in runs), 1)


def make_pair(folder: Path) -> tuple[Path, Path]:
    """A Llama of 254 M parameters in bf16 and a fine-tune of it, three shards each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from deltalens.demo.model import build_tokenizer
    from deltalens.demo.recipe import DEFAULT_RECIPE

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2720,
        num_hidden_layers=15,
        num_attention_heads=16,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).bfloat16()
    tokenizer = build_tokenizer(DEFAULT_RECIPE)
    ft, base = folder / "ft", folder / "base"
    model.save_pretrained(base, max_shard_size="190MB")
    with torch.no_grad():
        for parameter in model.parameters():
            change = torch.randn(parameter.shape) * 1e-3 * torch.rand(1)
            parameter.add_(change.bfloat16())
    model.save_pretrained(ft, max_shard_size="190MB")
    for place in (ft, base):
        tokenizer.save_pretrained(place)
    return ft, base
