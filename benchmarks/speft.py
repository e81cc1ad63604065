"""What a step of sparse tuning costs, beside PEFT's LoRA and SHiRA with as many trained numbers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import AT_ONCE
from deltalens import SparseTuning
from deltalens.training.costs import peak_mb, reset_peak

ROUNDS = 12
RANKS = (1, 4, 32)
"""LoRA's ranks on all linear layers: 0.16, 0.63 and 5.0 million numbers."""
KINDS = ("speft", "scattered", "lora", "shira", "floor")
"""`speft` has the default masks, of the gradient, ranked globally; `scattered` has the ones that
cost most, drawn at random with as many in each layer as LoRA has."""
OURS = KINDS[:2]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run() -> None:
    """A 111 M Llama in fp32, 2 x 256 tokens a step, AdamW: a step of each kind in turn, the ratio
    taken turn by turn. The floor is the forward pass and the gradients of activations, and nothing
    else. Then the peak memory of three steps of each, in processes of their own.
    """
    for rank in RANKS:
        sides = {kind: Steps(kind, rank) for kind in KINDS}
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(ROUNDS + 2):
            for kind, side in sides.items():
                spent = side.step()
                if turn > 1:
                    seconds[kind].append(spent)
        for kind in OURS:
            _report(rank, kind, sides[kind].trained, seconds)
        del sides
        _memory(rank)


class Steps:
    """A model, what is trained of it, and the optimizer."""

    def __init__(self, kind: str, rank: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8192,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=8,
            num_attention_heads=16,
            max_position_embeddings=256,
            tie_word_embeddings=True,
        )
        self.model: Any = LlamaForCausalLM(config)
        trained = self._prepare(kind, rank)
        self.trained = sum(parameter.numel() for parameter in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def _prepare(self, kind: str, rank: int) -> list[Any]:
        if kind == "floor":
            self.model.requires_grad_(False)
            embedding = self.model.get_input_embeddings()
            embedding.register_forward_hook(lambda m, args, out: out.requires_grad_(True))
            return []
        if kind in OURS:
            how: dict[str, Any] = {"metric": "random", "scope": "tensor"}
            if kind == "speft":
                how = {
                    "batches": [{"input_ids": ids, "labels": ids} for ids in map(_ids, range(8))]
                }
            self.tuning = SparseTuning(self.model, like_lora=rank, targets="linear", **how)
            return self.tuning.parameters()
        import peft

        shared: dict[str, Any] = {"target_modules": LINEAR, "task_type": "CAUSAL_LM", "r": rank}
        config = peft.LoraConfig(**shared) if kind == "lora" else peft.ShiraConfig(**shared)
        self.model = peft.get_peft_model(self.model, config)
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def step(self) -> float:
        """Seconds of one."""
        ids = _ids()
        begun = time.perf_counter()
        self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - begun


def _ids(*_: int) -> torch.Tensor:
    return torch.randint(0, 8192, (2, 256))


def _report(rank: int, kind: str, trained: int, seconds: dict[str, list[float]]) -> None:
    ours = seconds[kind]
    for other in KINDS[len(OURS) :]:
        ratios = sorted(mine / theirs for mine, theirs in zip(ours, seconds[other], strict=True))
        line = {
            "name": f"{kind}-step-of-{other}-r{rank}",
            "trained": trained,
            "ours": round(statistics.median(ours), 4),
            other: round(statistics.median(seconds[other]), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_p10_p90": [round(ratios[int(q * (len(ratios) - 1))], 3) for q in (0.1, 0.9)],
            "rounds": len(ratios),
            "cores": os.cpu_count(),
        }
        print(json.dumps(line), flush=True)


def _memory(rank: int) -> None:
    program = "import sys; from benchmarks.speft import steps; steps(sys.argv[1], int(sys.argv[2]))"
    peaks = {}
    for kind in (*OURS, "lora", "shira"):
        command = [sys.executable, "-c", program, kind, str(rank)]
        done = subprocess.run(
            command, env=os.environ | AT_ONCE, capture_output=True, text=True, check=True
        )
        peaks[kind] = float(done.stdout.split()[-1])
    line = {"name": f"speft-peak-memory-r{rank}", **{k: round(mb) for k, mb in peaks.items()}}
    for ours in OURS:
        for other in ("lora", "shira"):
            line[f"{ours}_of_{other}"] = round(peaks[ours] / peaks[other], 3)
    print(json.dumps(line), flush=True)


def steps(kind: str, rank: int) -> None:
    """Print the peak memory of three steps of a kind in this process, in MB. What loads our code
    and peft's is in each; the choice of what is trained, which comes before, is not."""
    import peft  # noqa: F401

    side = Steps(kind, rank)
    reset_peak(torch.device("cpu"))
    for _ in range(3):
        side.step()
    print(peak_mb(torch.device("cpu")))


if __name__ == "__main__":
    run()
