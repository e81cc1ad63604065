"""Prints how far fidelity raises the peak memory of a process above a model of its own: bytes.

Run as a program: `python -m tests.support.memory DTYPE SEQUENCES NEW_TOKENS`. The vocabulary has
151,936 tokens.
"""

import re
import sys
from pathlib import Path

import torch

from deltalens.scoring.fidelity import Fidelity, sample_texts
from tests.support.models import tiny


def peak() -> int:
    """The process's VmHWM."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])


def main(dtype: str, sequences: int, new_tokens: int) -> None:
    """Sample, take the reference, measure."""
    model = tiny(
        "qwen2",
        vocab_size=151_936,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = model.to(getattr(torch, dtype)).eval()
    with torch.inference_mode():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    before = peak()
    texts = sample_texts(model, sequences, new_tokens, 0)
    assert [len(text) for text in texts] == [new_tokens + 1] * sequences
    fidelity = Fidelity(model, texts)
    assert fidelity.measure(model)["kl"].value == 0
    print(peak() - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
