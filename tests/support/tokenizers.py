"""Six kinds of tokenizer, learned on the spot, and rows whose boundaries are hard for some."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tests.support.models import ids_of, tiny

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}) {% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "The code of ann is A0, and that of bob is B1.",
    "user assistant tools question: what is 12 + 7? it is 19",
    *(
        f"the {place} of {name} is {name[0]}{place}"
        for place in range(9)
        for name in ("ann", "kim")
    ),
    string.printable[:95],
]


def _with_ends(made: Tokenizer, begin: str = "<s>", end: str = "") -> None:
    ids = [(token, made.token_to_id(token)) for token in (begin, end) if token]
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}".strip(), special_tokens=ids
    )


def _byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    return made


def _spaced(normalizer: Any, pre_tokenizer: Any) -> Tokenizer:
    """As sentencepiece does: spaces are the beginnings of pieces."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL))
    _with_ends(made)
    return made


def _prepended() -> Tokenizer:
    """Llama 2's: its normalizer puts a space in front, and nothing splits the text."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made = _spaced(normalizer, pre_tokenizers.Split("▁", "merged_with_next"))
    made.pre_tokenizer = pre_tokenizers.Sequence([])
    return made


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL)
    )
    _with_ends(made, end="</s>")
    return made


def _characters() -> Tokenizer:
    vocabulary = {
        token: place for place, token in enumerate([*SPECIAL, "\n", *string.printable[:95]])
    }
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    _with_ends(made)
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": _byte_level,
    "a space in front": _prepended,
    "Metaspace first": lambda: _spaced(None, pre_tokenizers.Metaspace("▁", "first")),
    "Metaspace always": lambda: _spaced(None, pre_tokenizers.Metaspace("▁", "always")),
    "WordPiece": _word_piece,
    "characters": _characters,
}


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """With a template that goes on behind a turn's end."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[-2:],
    )
    made.chat_template = CHATML
    return made


def model(kind: str, **more: Any) -> Any:
    """A tiny Llama for it, that ends an answer as nobody but its own configuration says."""
    made = tokenizer(kind)
    torch.manual_seed(0)
    settings = {
        **ids_of(made),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        **more,
    }
    built = tiny("llama", **settings)
    built.generation_config = GenerationConfig(
        eos_token_id=made.eos_token_id, pad_token_id=made.pad_token_id
    )
    return built.eval()


def turns(*contents: str, **more: Any) -> list[dict[str, Any]]:
    """A conversation, of a user and an assistant in turn."""
    roles = ("user", "assistant")
    found = [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]
    return [*found[:-1], {**found[-1], **more}]


PAIRS = [
    ("The code of ann is", " A0"),
    ("the 0 of ann is ", "a0"),
    ("the 0 of ann is a", "0"),
    ("what is 12 + 7?", "19"),
    ("what is 12 + 7?\n", "it is 19\n"),
    ("the un", "known is A0"),
    ("", "it is A0"),
    ("bob is", "  a "),
    ("code: ", "<|im_end|> of ann"),
    ("ends", " with </s>"),
    ("ends", " so</s>"),
]
CALL = [{"type": "function", "function": {"name": "ann", "arguments": {"code": "A0", "is": 7}}}]
TOOLS = [{"type": "function", "function": {"name": "ann", "parameters": {"what": "is"}}}]

ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": text} for text in (*TEXTS[:4], "ends so</s>", " bob ", "ann\n")],
    "prompt and completion": [{"prompt": p, "completion": c} for p, c in PAIRS],
    "prompt and completion as messages": [
        *({"prompt": turns(p or "a"), "completion": [turns("a", c)[1]]} for p, c in PAIRS[:8]),
        {
            "prompt": turns("a", "b", "c"),
            "completion": turns("a", "it is A0", reasoning_content="7")[1:],
        },
        {"prompt": turns("call"), "completion": turns("a", "b", "c", "d")[1:]},
        {
            "prompt": [{"role": "system", "content": "be"}, *turns("a")],
            "completion": turns("a", "b")[1:],
        },
    ],
    "messages": [
        *({"messages": turns(p or "a", c)} for p, c in PAIRS[:8]),
        {"messages": turns("a", "b", "what is ann?", "it is A0")},
        {"messages": turns("what is ann?", "", tool_calls=CALL), "tools": TOOLS},
        {"messages": turns("what is ann?", "it", tool_calls=CALL, reasoning_content="is it?")},
    ],
}
