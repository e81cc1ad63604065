"""The one place where tests configure, build and write tiny models.

`tiny("llama", hidden_size=8)` is a Llama as everywhere else in the tests, but 8 wide. Everything is
an ordinary transformers object written by `save_pretrained`, so what holds for these models holds
for a user's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from deltalens.demo.model import build_tokenizer
from deltalens.demo.recipe import DEFAULT_RECIPE, Recipe

POSITIONS = 96
"""Longest input of the models that go with `tokenizer()`."""

_WIDTH: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2}
_ENCODER: dict[str, Any] = {
    **_WIDTH,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_LLAMA_LIKE: dict[str, Any] = {**_ENCODER, "num_key_value_heads": 1}
_OPT: dict[str, Any] = {
    **_WIDTH,
    "word_embed_proj_dim": 16,
    "ffn_dim": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
_MAMBA_HEADS: dict[str, Any] = {
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}
_FEW_EXPERTS: dict[str, Any] = {"num_local_experts": 3, "num_experts_per_tok": 2}
_QWEN3_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
    "mlp_only_layers": [0],
}

ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], type[Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, _LLAMA_LIKE),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, _LLAMA_LIKE),
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, _GPT2),
    "opt": (transformers.OPTConfig, transformers.OPTForCausalLM, _OPT),
    "bert": (transformers.BertConfig, transformers.BertForMaskedLM, _ENCODER),
    "roberta": (transformers.RobertaConfig, transformers.RobertaForMaskedLM, _ENCODER),
    "gemma2": (
        transformers.Gemma2Config,
        transformers.Gemma2ForCausalLM,
        {**_LLAMA_LIKE, "head_dim": 8, "sliding_window": 8},
    ),
    "mixtral": (
        transformers.MixtralConfig,
        transformers.MixtralForCausalLM,
        {**_LLAMA_LIKE, **_FEW_EXPERTS},
    ),
    "mamba": (
        transformers.MambaConfig,
        transformers.MambaForCausalLM,
        {**_WIDTH, "state_size": 4},
    ),
    "falcon-h1": (
        transformers.FalconH1Config,
        transformers.FalconH1ForCausalLM,
        {**_LLAMA_LIKE, **_MAMBA_HEADS},
    ),
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        transformers.Qwen3MoeForCausalLM,
        {**_LLAMA_LIKE, **_QWEN3_EXPERTS},
    ),
}
"""Architecture -> its configuration, its model, and the settings that make it tiny."""


_GEMMA2_2B: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 256_000,
}
_QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
}
_LLAMA3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}
PUBLISHED = {
    "gemma2-2b": ("gemma2", _GEMMA2_2B),
    "qwen2-7b": ("qwen2", _QWEN2_7B),
    "llama3-8b": ("llama", _LLAMA3_8B),
}
"""Models of the papers -> architecture, and the settings that decide shapes."""


def shapes_of(name: str) -> Any:
    """A published model without weights, on the meta device.

    Args:
        name: A key of `PUBLISHED`.
    """
    architecture, settings = PUBLISHED[name]
    config, model, _ = ARCHITECTURES[architecture]
    with torch.device("meta"):
        return model(config(**settings))


def tiny_config(architecture: str, **settings: Any) -> Any:
    """The configuration of a tiny model.

    Args:
        architecture: A key of `ARCHITECTURES`.
        settings: What differs from the tiny settings, as the configuration's class takes it.
    """
    config, _, tiny_settings = ARCHITECTURES[architecture]
    return config(**{**tiny_settings, **settings})


def tiny(architecture: str, *, head: type[Any] | None = None, **settings: Any) -> Any:
    """A tiny model, its weights drawn from torch's global generator.

    Args:
        architecture: A key of `ARCHITECTURES`.
        head: The class to build, where it is not the language model.
        settings: What differs from the tiny settings, as the configuration's class takes it.
    """
    config = tiny_config(architecture, **settings)
    return (head or ARCHITECTURES[architecture][1])(config)


def initialized(make: Callable[[], Any], seed: int) -> Any:
    """A model in evaluation mode whose weights come from the seed alone.

    torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, BOS in front."""
    return build_tokenizer(Recipe(positions=POSITIONS))


def ids_of(tokens: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The settings of a model that a tokenizer decides: vocabulary and special tokens."""
    return {
        "vocab_size": len(tokens),
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
    }


def demo_llama(dtype: torch.dtype = torch.float32) -> Any:
    """A Llama for the demo's tokenizer, embedding and head tied; the same at every call."""
    torch.manual_seed(0)
    model = tiny(
        "llama",
        **ids_of(build_tokenizer(DEFAULT_RECIPE)),
        hidden_size=32,
        intermediate_size=48,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return model.to(dtype)


def small_llama() -> Any:
    """A Llama of eleven tokens, its weights drawn from torch's global generator."""
    return tiny(
        "llama",
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )


def save(
    model: Any,
    folder: Path,
    shard: str = "1GB",
    tokens: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a checkpoint as a user does: weights, configuration, tokenizer.

    Args:
        model: What is written.
        folder: Where to.
        shard: The largest size of a file of weights.
        tokens: The tokenizer beside it; `tokenizer()` if none is named.
    """
    model.save_pretrained(folder, max_shard_size=shard)
    (tokens or tokenizer()).save_pretrained(folder)
    return folder


def llama(tied: bool, **settings: Any) -> Any:
    """Llama, with grouped queries."""
    return _for_tokenizer("llama", tied, **settings)


def qwen2(tied: bool) -> Any:
    """Qwen2: biases in the attention."""
    return _for_tokenizer("qwen2", tied)


def gpt2(tied: bool) -> Any:
    """GPT-2: transposed linears (Conv1D), one matrix for query, key and value."""
    return _for_tokenizer("gpt2", tied)


def opt(tied: bool) -> Any:
    """OPT: learned positions with an offset."""
    return _for_tokenizer("opt", tied)


def bert(tied: bool) -> Any:
    """BERT: an encoder, whose decoder's bias is tied too."""
    return _for_tokenizer("bert", tied)


def roberta(tied: bool) -> Any:
    """RoBERTa: an encoder that counts positions from its padding token on."""
    return _for_tokenizer("roberta", tied)


def mixtral(tied: bool) -> Any:
    """Mixtral: three matrices per expert in a file, two stacks of all experts in memory."""
    return _for_tokenizer("mixtral", tied)


def _for_tokenizer(architecture: str, tied: bool, **settings: Any) -> Any:
    fitting = {**ids_of(tokenizer()), "tie_word_embeddings": tied}
    return tiny(architecture, **{**fitting, **settings})


FAMILIES: dict[str, Callable[[bool], Any]] = {
    "llama": llama,
    "gpt2": gpt2,
    "opt": opt,
    "bert": bert,
    "roberta": roberta,
    "qwen2": qwen2,
    "mixtral": mixtral,
}
"""Models for `tokenizer()`, tied or not."""
