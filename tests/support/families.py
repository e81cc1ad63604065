"""Tiny models of real architectures, and pairs of checkpoints made of them.

Everything is an ordinary transformers object written by `save_pretrained`: what holds here holds on
anybody's folder. A fine-tune is its base plus structured noise: a low-rank part, a few large
entries, and entries that did not change at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from deltalens.demo.model import build_tokenizer
from deltalens.demo.recipe import Recipe

POSITIONS = 96
SHARD = "6KB"
"""Small enough that every pair here has several shards."""

States = dict[str, torch.Tensor]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, BOS in front."""
    return build_tokenizer(Recipe(positions=POSITIONS))


def _common() -> dict[str, Any]:
    made = tokenizer()
    return {
        "vocab_size": len(made),
        "pad_token_id": made.pad_token_id,
        "bos_token_id": made.bos_token_id,
        "eos_token_id": made.eos_token_id,
    }


def _llama_like(**more: Any) -> dict[str, Any]:
    return {
        **_common(),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": POSITIONS,
        **more,
    }


def llama(tied: bool, **more: Any) -> Any:
    """Llama, with grouped queries."""
    config = transformers.LlamaConfig(**{**_llama_like(tie_word_embeddings=tied), **more})
    return transformers.LlamaForCausalLM(config)


def qwen2(tied: bool) -> Any:
    """Qwen2: biases in the attention."""
    config = transformers.Qwen2Config(**_llama_like(tie_word_embeddings=tied))
    return transformers.Qwen2ForCausalLM(config)


def gpt2(tied: bool) -> Any:
    """GPT-2: transposed linears (Conv1D), one matrix for query, key and value."""
    config = transformers.GPT2Config(
        **_common(), n_embd=16, n_layer=2, n_head=2, n_positions=POSITIONS, tie_word_embeddings=tied
    )
    return transformers.GPT2LMHeadModel(config)


def opt(tied: bool) -> Any:
    """OPT: learned positions with an offset."""
    config = transformers.OPTConfig(
        **_common(),
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=tied,
    )
    return transformers.OPTForCausalLM(config)


def bert(tied: bool) -> Any:
    """BERT: an encoder, whose decoder's bias is tied too."""
    config = transformers.BertConfig(
        **_common(),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=tied,
    )
    return transformers.BertForMaskedLM(config)


def mixtral(tied: bool) -> Any:
    """Mixtral: in a file three matrices per expert, live two stacks of all experts' together."""
    config = transformers.MixtralConfig(
        **_llama_like(tie_word_embeddings=tied, num_local_experts=3, num_experts_per_tok=2)
    )
    return transformers.MixtralForCausalLM(config)


FAMILIES: dict[str, Callable[[bool], Any]] = {
    "llama": llama,
    "gpt2": gpt2,
    "opt": opt,
    "bert": bert,
    "qwen2": qwen2,
    "mixtral": mixtral,
}


@dataclass(frozen=True)
class Kind:
    """Which pair: everything that a test may want to vary."""

    family: str = "llama"
    dtype: torch.dtype = torch.float32
    sharded: bool = False
    tied: bool = False

    def __str__(self) -> str:
        return "-".join(
            (
                self.family,
                str(self.dtype).removeprefix("torch."),
                "sharded" if self.sharded else "single",
                "tied" if self.tied else "untied",
            )
        )


@dataclass(frozen=True)
class Pair:
    """Two checkpoint folders."""

    ft: Path
    base: Path


def write_pair(folder: Path, kind: Kind) -> Pair:
    """A base and its fine-tune, both with a tokenizer."""
    model = initialized(lambda: FAMILIES[kind.family](kind.tied), seed=1)
    return save_pair(folder, model, kind.dtype, SHARD if kind.sharded else "1GB")


def save_pair(
    folder: Path, model: Any, dtype: torch.dtype = torch.float32, shard: str = "1GB"
) -> Pair:
    """Save a model as the base, fine-tune it, and save that."""
    pair = Pair(folder / "ft", folder / "base")
    model = model.to(dtype)
    save(model, pair.base, shard)
    fine_tune(model)
    save(model, pair.ft, shard)
    return pair


def save(model: Any, folder: Path, shard: str = "1GB") -> None:
    """As a user saves: weights, configuration, tokenizer."""
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer().save_pretrained(folder)


def initialized(make: Callable[[], Any], seed: int) -> Any:
    """A model whose weights come from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


@torch.no_grad()
def fine_tune(model: Any, seed: int = 2, scale: float = 0.2) -> None:
    """Add structured noise to every parameter, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        shape = parameter.shape
        noise = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            rank_one = torch.randn(shape[:-1], generator=generator).unsqueeze(-1) * torch.randn(
                shape[-1], generator=generator
            )
            noise = 0.3 * noise + rank_one
        heavy = torch.rand(shape, generator=generator) < 0.05
        changed = torch.rand(shape, generator=generator) < 0.7
        noise = scale * noise * (1 + 4 * heavy) * changed
        parameter.add_(noise.to(parameter.dtype))


def plain(folder: Path, dtype: Any = "auto") -> Any:
    """Load as plain transformers does, knowing nothing of deltalens."""
    config = transformers.AutoConfig.from_pretrained(folder)
    masked = config.architectures[0].endswith("ForMaskedLM")
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model


def state_of(model: Any) -> States:
    """A copy of all that a model holds."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(one: States, other: States) -> list[str]:
    """Names of tensors that are not the same, bit for bit, in dtype and in shape."""
    assert one.keys() == other.keys()
    return [name for name in one if not _same_bits(one[name], other[name])]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(
        one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
    )
