"""Tied tensors stored twice count once, and are dropped and studied as transformers loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import deltalens
from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.matching import pair
from deltalens.studies.landscape.models import StoredModels
from tests.support import models
from tests.support.checkpoint_pairs import Pair, differing, fine_tune, state_of
from tests.support.models import initialized
from tests.support.runs import captured

SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_LIKE = {
    **SMALL,
    "intermediate_size": 24,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def gemma() -> Any:
    return transformers.GemmaForCausalLM(transformers.GemmaConfig(**LLAMA_LIKE, head_dim=8))


def phi() -> Any:
    """Tied only because the configuration says so: Phi's default is not to."""
    config = transformers.PhiConfig(
        **{**LLAMA_LIKE, "num_key_value_heads": 2}, tie_word_embeddings=True
    )
    return transformers.PhiForCausalLM(config)


def falcon() -> Any:
    return transformers.FalconForCausalLM(transformers.FalconConfig(**SMALL))


def bloom() -> Any:
    return transformers.BloomForCausalLM(transformers.BloomConfig(**SMALL))


def mamba() -> Any:
    return models.tiny("mamba", **{k: SMALL[k] for k in SMALL if k != "num_attention_heads"})


def t5() -> Any:
    """An encoder and a decoder, each with an embedding that is the shared one."""
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=48,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=64,
    )
    return transformers.BartForConditionalGeneration(config)


def gemma3() -> Any:
    """A text model inside a model of several kinds, which ties by its own default."""
    text = {**LLAMA_LIKE, "head_dim": 8, "sliding_window": 16}
    config = transformers.Gemma3TextConfig(**text)
    return transformers.Gemma3ForCausalLM(config)


TIED: dict[str, Callable[[], Any]] = {
    **{name: lambda make=make: make(True) for name, make in models.FAMILIES.items()},
    "gemma": gemma,
    "gemma3": gemma3,
    "phi": phi,
    "falcon": falcon,
    "bloom": bloom,
    "mamba": mamba,
    "t5": t5,
    "bart": bart,
}
SAYS_SO = {"llama", "qwen2", "mixtral", "phi"}
"""Whose class ties only if the configuration says so."""


def load(folder: Path, **spec: Any) -> Any:
    """As plain transformers loads it."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, dtype="auto", **spec)


def store_copies(folder: Path, model: Any) -> list[str]:
    """Store every tied tensor beside the one it is tied to; which were added."""
    file = folder / "model.safetensors"
    stored, live = load_file(file), dict(model.named_parameters(remove_duplicate=False))
    added = [
        name for both in model.all_tied_weights_keys.items() for name in both if name not in stored
    ]
    for name in added:
        stored[name] = live[name].detach().clone()
    save_file(stored, file, metadata={"format": "pt"})
    return list(dict.fromkeys(added))


def say_nothing_of_tying(folder: Path) -> None:
    """The configuration as transformers 4 writes it where the class's default is to tie."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("tie_word_embeddings", None)
    file.write_text(json.dumps(config))


def tied_pair(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> tuple[Pair, Any]:
    """A tied fine-tune with its copies stored, and a base without; and the fine-tuned model."""
    made = Pair(folder / "ft", folder / "base")
    model = initialized(TIED[name], seed=1).to(dtype)
    model.save_pretrained(made.base)
    fine_tune(model)
    model.save_pretrained(made.ft)
    assert store_copies(made.ft, model), "nothing is tied here"
    if name not in SAYS_SO:
        say_nothing_of_tying(made.ft)
        say_nothing_of_tying(made.base)
    return made, model


@pytest.mark.parametrize("name", TIED)
def test_stored_copies_count_once_and_drop_writes_what_the_study_had(
    name: str, tmp_path: Path
) -> None:
    both, model = tied_pair(tmp_path, name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert pair(both.ft, both.base).entries == parameters
    assert deltalens.inspect(both.ft, both.base).groups[0].entries == parameters
    live = captured(both, tmp_path / "study", rates=["0.5"], seeds=1)
    for strategy, rate in (("random", 0.5), ("trivial", 0.5), ("salient", 0.0), ("salient", 1.0)):
        out = tmp_path / f"{strategy}-{rate}"
        deltalens.drop(both.ft, both.base, out, strategy=strategy, rate=rate)
        of_drop = load(out)
        assert differing(state_of(of_drop), live.states[strategy, rate, 0]) == []
        assert sum(parameter.numel() for parameter in of_drop.parameters()) == parameters
    assert differing(live.states["salient", 0.0, 0], state_of(load(both.ft))) == []
    assert differing(live.states["salient", 1.0, 0], state_of(load(both.base))) == []


@pytest.mark.parametrize("name", ["gemma", "gpt2", "t5"])
def test_copies_are_stored_in_the_base_alone(name: str, tmp_path: Path) -> None:
    both, model = tied_pair(tmp_path, name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    swapped = pair(both.base, both.ft)
    assert swapped.entries == parameters
    assert not swapped.copies


@pytest.mark.parametrize("name", ["gemma", "gpt2", "bart"])
def test_landscape_moves_a_tied_tensor_once(name: str, tmp_path: Path) -> None:
    both, model = tied_pair(tmp_path, name)
    spec: Any = SimpleNamespace(plane="line", include=None, exclude=None)
    models = StoredModels(both.ft, [both.base], None, spec, torch.device("cpu"), "auto")
    slots = models.live(models.load()).slots
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sum(slot.size for slot in slots) == parameters
    assert sum(models.sizes.values()) == parameters
    assert set(models.sizes) == {slot.name for slot in slots}


def test_a_copy_with_other_values_is_a_tensor_of_its_own_as_transformers_has_it(
    tmp_path: Path,
) -> None:
    both, _ = tied_pair(tmp_path, "gemma")
    file = both.ft / "model.safetensors"
    stored = load_file(file)
    stored["lm_head.weight"] += 0.25
    save_file(stored, file, metadata={"format": "pt"})
    loaded = load(both.ft)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight, "transformers ties them"
    found = pair(both.ft, both.base)
    assert found.entries == sum(parameter.numel() for parameter in loaded.parameters())
    assert not found.copies
    assert any("transformers loads both, and both are counted" in note for note in found.notes)
    live = captured(both, tmp_path / "study", rates=["0.5"], strategies=["random"], seeds=1)
    deltalens.drop(both.ft, both.base, tmp_path / "out", strategy="random", rate="0.5")
    assert differing(state_of(load(tmp_path / "out")), live.states["random", 0.5, 0]) == []


def test_a_copy_that_equals_in_a_narrower_dtype_only_is_refused_with_what_to_do(
    tmp_path: Path,
) -> None:
    both, _ = tied_pair(tmp_path, "gemma")
    file = both.ft / "model.safetensors"
    stored = load_file(file)
    stored["model.embed_tokens.weight"] = stored["lm_head.weight"].bfloat16().float()
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"] * (1 + 2**-20)
    save_file(stored, file, metadata={"format": "pt"})
    captured(both, tmp_path / "wide", rates=["0.5"], strategies=["random"], seeds=1)
    with pytest.raises(deltalens.DeltaLensError, match=r"in bfloat16 transformers ties them"):
        captured(both, tmp_path / "narrow", rates=["0.5"], strategies=["random"], dtype="bfloat16")


def test_a_zero_of_another_sign_in_a_copy_is_the_same_number(tmp_path: Path) -> None:
    both, _ = tied_pair(tmp_path, "gpt2")
    file = both.ft / "model.safetensors"
    stored = load_file(file)
    stored["transformer.wte.weight"][:2] = 0.0
    stored["lm_head.weight"][:2] = -0.0
    save_file(stored, file, metadata={"format": "pt"})
    assert list(pair(both.ft, both.base).copies) == ["lm_head.weight"]
    live = captured(both, tmp_path / "study", rates=["0.5"], strategies=["random"], seeds=1)
    deltalens.drop(both.ft, both.base, tmp_path / "out", strategy="random", rate="0.5")
    assert differing(state_of(load(tmp_path / "out")), live.states["random", 0.5, 0]) == []


def test_an_untied_head_of_an_untied_model_asks_transformers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltalens.io import tying

    # A vocabulary of its own: what transformers said of another test's model is remembered.
    model = initialized(lambda: models.tiny("llama", vocab_size=61), seed=1)
    model.save_pretrained(tmp_path)
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(tying, "skeleton", made.append)
    found = tying.stored_copies(open_checkpoint(tmp_path))
    assert made == []
    assert (dict(found.equal), dict(found.apart)) == ({}, {})


@pytest.mark.parametrize("ties", [True, None, False])
def test_an_architecture_that_transformers_does_not_know_goes_by_names_and_values(
    tmp_path: Path, ties: bool | None
) -> None:
    embedding = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    config: dict[str, Any] = {"architectures": ["Odd"], "auto_map": {"AutoModel": "odd.Odd"}}
    if ties is not None:
        config["tie_word_embeddings"] = ties
    for folder, shift in (("ft", 1.0), ("base", 0.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        stored = {"wte.weight": embedding + shift, "lm_head.weight": embedding + shift}
        save_file(stored, tmp_path / folder / "model.safetensors")
    found = pair(tmp_path / "ft", tmp_path / "base")
    assert found.entries == (48 if ties is False else 24)
