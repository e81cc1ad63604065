"""The demo's model and tokenizer, both ordinary transformers objects.

Nothing here is special to deltalens: what the demo shows on these folders, it would show in the
same way on anybody's checkpoint.
"""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deltalens.demo.recipe import Recipe
from deltalens.demo.tasks import ALPHABET

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token a character that puts BOS in front.

    A training row is ``tok(prompt) + tok(completion, add_special_tokens=False) + [eos]``, which
    characters make exact: no token can span the border between prompt and completion.
    """
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, UNKNOWN, *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, vocabulary[BOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=recipe.positions,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny Llama in fp32 on the CPU, its weights drawn from the recipe's seed alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.blocks,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed every GPU, which fork_rng(devices=[]) does not undo.
        torch.set_rng_state(torch.Generator().manual_seed(recipe.seed).get_state())
        return LlamaForCausalLM(config)
