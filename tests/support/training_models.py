"""Tiny models of several architectures, beside the Llama of `folders`."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from deltalens.demo.model import build_tokenizer
from deltalens.demo.recipe import DEFAULT_RECIPE

TOKENIZER = build_tokenizer(DEFAULT_RECIPE)
_IDS: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    "bos_token_id": TOKENIZER.bos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
    "pad_token_id": TOKENIZER.pad_token_id,
}
_WIDE: dict[str, Any] = {**_IDS, "hidden_size": 32, "num_hidden_layers": 2}
_DEEP: dict[str, Any] = {
    **_WIDE,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(**_IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(**_WIDE, state_size=4, intermediate_size=64, time_step_rank=4)
    ),
    "falcon-h1": lambda: hf.FalconH1ForCausalLM(
        hf.FalconH1Config(
            **_DEEP,
            mamba_d_ssm=64,
            mamba_n_heads=8,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_n_groups=1,
        )
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**_DEEP, num_local_experts=4)),
    "qwen3-moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**_DEEP, **_EXPERTS, head_dim=8, mlp_only_layers=[0])
    ),
    "bert": lambda: hf.BertForMaskedLM(
        hf.BertConfig(**_WIDE, intermediate_size=64, num_attention_heads=4)
    ),
}


def make(name: str) -> Any:
    """A model, the same at every call."""
    torch.manual_seed(0)
    return ARCHITECTURES[name]()
