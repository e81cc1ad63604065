"""Run by torchrun in two processes: transformers' Trainer under DDP, without a probe and with one.

Usage: -m tests.support.distributed.trainer_probe OUT
"""

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from deltalens.integrations.transformers import GradientProbeCallback
from tests.support.models import small_llama

STEPS, CLIP = 6, 0.05


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return small_llama()  # type: ignore[no-any-return]


def train(out: Path, callbacks: list[TrainerCallback]) -> LlamaForCausalLM:
    ids = torch.randint(0, 11, (32, 6), generator=torch.Generator().manual_seed(0)).tolist()
    arguments = TrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=STEPS,
        max_grad_norm=CLIP,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        ddp_backend="gloo",
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
    )
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    trainer = Trainer(model(), arguments, train_dataset=data, callbacks=callbacks)
    trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    return trainer.model


def main(out: Path) -> None:
    bare = train(out, [])
    # A folder of its own for each process: whoever writes is seen.
    watched = train(out, [GradientProbeCallback(out / f"run-{os.environ['RANK']}", updates=True)])
    start = model().state_dict()
    for name, value in bare.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
        assert not torch.equal(value, start[name]), name
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
