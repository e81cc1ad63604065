"""The longest row is what the model itself takes: one token more is an index error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.positions import longest_input
from deltalens.scoring.rows import read_rows
from deltalens.scoring.tokens import encode_rows
from deltalens.scoring.turns import ends_of
from tests.support.models import tiny
from tests.support.tokenizers import tokenizer

TABLE = 40
SMALL: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": TABLE,
    "is_decoder": True,
}
DECODER: dict[str, Any] = {
    "vocab_size": 120,
    "d_model": 16,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": TABLE,
}
GPT = {"vocab_size": 120, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": TABLE}

MODELS: dict[str, Callable[[], Any]] = {
    "roberta": lambda: tiny("roberta", head=hf.RobertaForCausalLM, **SMALL),
    "roberta that pads with 7": lambda: tiny(
        "roberta", head=hf.RobertaForCausalLM, **SMALL, pad_token_id=7
    ),
    "xlm-roberta": lambda: hf.XLMRobertaForCausalLM(hf.XLMRobertaConfig(**SMALL)),
    "xlm-roberta-xl": lambda: hf.XLMRobertaXLForCausalLM(hf.XLMRobertaXLConfig(**SMALL)),
    "camembert": lambda: hf.CamembertForCausalLM(hf.CamembertConfig(**SMALL)),
    "roberta-prelayernorm": lambda: hf.RobertaPreLayerNormForCausalLM(
        hf.RobertaPreLayerNormConfig(**SMALL)
    ),
    "data2vec": lambda: hf.Data2VecTextForCausalLM(hf.Data2VecTextConfig(**SMALL)),
    "mpnet": lambda: hf.MPNetForMaskedLM(hf.MPNetConfig(**SMALL)),
    "i-bert": lambda: hf.IBertForMaskedLM(hf.IBertConfig(**SMALL)),
    "prophetnet": lambda: hf.ProphetNetForCausalLM(
        hf.ProphetNetConfig(
            vocab_size=120,
            hidden_size=16,
            num_decoder_layers=1,
            num_decoder_attention_heads=2,
            decoder_ffn_dim=16,
            max_position_embeddings=TABLE,
        )
    ),
    "mamba": lambda: tiny("mamba", vocab_size=120, num_hidden_layers=1),
    "bert": lambda: tiny("bert", head=hf.BertLMHeadModel, **SMALL),
    "electra": lambda: hf.ElectraForCausalLM(hf.ElectraConfig(**SMALL, embedding_size=16)),
    "gpt2": lambda: tiny("gpt2", **GPT),
    "opt": lambda: tiny("opt", **{**SMALL, "is_decoder": False}, ffn_dim=16, dropout=0.0),
    "bart": lambda: hf.BartForCausalLM(hf.BartConfig(**DECODER)),
    "biogpt": lambda: hf.BioGptForCausalLM(hf.BioGptConfig(**SMALL)),
    "gpt-neo": lambda: hf.GPTNeoForCausalLM(
        hf.GPTNeoConfig(
            vocab_size=120,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            attention_types=[[["global"], 1]],
            max_position_embeddings=TABLE,
        )
    ),
}


def takes(model: Any, length: int) -> bool:
    ids = torch.full((1, length), 11)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mamba"])
def test_the_longest_input_is_the_longest_that_works(name: str) -> None:
    model = MODELS[name]().eval()
    longest = longest_input(model)
    assert longest is not None
    assert takes(model, longest)
    assert not takes(model, longest + 1)


def test_rows_as_long_as_a_robertas_table_are_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, encode = MODELS["roberta"]().eval(), tokenizer("characters")
    rows = [{"prompt": "a" * n, "completion": "b"} for n in range(30, 45)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Scoring(read_rows(file), model, encode, 4096)
    assert found.measure(model)["loss"].n == 6
    assert found.left_out == 9
    longest = max(len(one.ids) for one in encode_rows(read_rows(file), encode, None)[0][:6])
    assert longest == TABLE - model.config.pad_token_id - 1


@pytest.mark.parametrize("name", ["roberta", "bert", "gpt2", "opt", "bart", "prophetnet", "mamba"])
def test_prompts_of_several_lengths_are_answered_as_each_alone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, encode = MODELS[name]().eval(), tokenizer("characters")
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(60 if "position" in part or "wpe" in part else 6)
    rows = [{"prompt": "abcdefghijk"[:n], "completion": "xyz"} for n in (2, 4, 7, 7, 11)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scoring = Scoring(read_rows(file), model, encode, 4096, re.compile("x"))
    sequences = scoring.sequences
    settings = hf.GenerationConfig(
        do_sample=False,
        max_new_tokens=6,
        pad_token_id=encode.pad_token_id,
        eos_token_id=sorted(ends_of(encode, model).stops),
    )
    wanted = []
    for one in sequences:
        prompt = torch.tensor([one.ids[: one.target]])
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
        )
        wanted.append(out[0, one.target :].tolist())
    assert len({tuple(answer) for answer in wanted}) > 1
    assert scoring.answers(model, sequences) == wanted
