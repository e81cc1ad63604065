"""A merged adapter computes what peft computes with it, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from deltalens.errors import CheckpointError
from deltalens.io.locate import located
from tests.support.models import initialized, llama, save, tokenizer
from tests.support.runs import command

pytestmark = pytest.mark.parity

peft = pytest.importorskip("peft")

LORA: dict[str, Any] = {
    "target_modules": ["q_proj", "v_proj"],
    "r": 4,
    "lora_alpha": 16,
    "task_type": "CAUSAL_LM",
}
LABELS = 3


def classifier() -> Any:
    config = llama(False).config
    config.num_labels = LABELS
    return transformers.LlamaForSequenceClassification(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


@dataclass(frozen=True)
class Case:
    """An adapter, and the base that it is trained on."""

    config: dict[str, Any] = field(default_factory=dict)
    make: Callable[[], Any] = lambda: llama(False)
    more_tokens: int = 0
    dtype: torch.dtype = torch.float32
    as_classifier: bool = False


CASES = {
    "LoRA": Case(),
    "LoRA in bf16": Case(dtype=torch.bfloat16),
    "rank-stabilized": Case({"use_rslora": True}),
    "DoRA": Case({"use_dora": True}),
    "whole embedding and head": Case({"modules_to_save": ["embed_tokens", "lm_head"]}),
    "whole embedding and head of a tied model": Case(
        {"modules_to_save": ["embed_tokens", "lm_head"]}, make=lambda: llama(True)
    ),
    "enlarged vocabulary": Case({"modules_to_save": ["embed_tokens", "lm_head"]}, more_tokens=4),
    "enlarged vocabulary of a tied model": Case(make=lambda: llama(True), more_tokens=4),
    "some tokens": Case({"trainable_token_indices": [5, 6]}),
    "classifier": Case({"task_type": "SEQ_CLS"}, make=classifier),
    "classifier on a language model": Case({"task_type": "SEQ_CLS"}, as_classifier=True),
    "encoder-decoder": Case({"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q", "v"]}, make=t5),
}


def write(folder: Path, case: Case, seed: int = 3) -> tuple[Path, Path, Any]:
    """Both folders, and peft's own model."""
    adapter, base = folder / "adapter", folder / "base"
    model = initialized(case.make, 1).to(case.dtype)
    save(model, base)
    if case.as_classifier:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=LABELS
        )
    if case.more_tokens:
        model.resize_token_embeddings(
            model.config.vocab_size + case.more_tokens, mean_resizing=False
        )
    made = peft.get_peft_model(model, peft.LoraConfig(**{**LORA, **case.config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.add_(noise.to(parameter.dtype))
    made.save_pretrained(adapter, save_embedding_layers=bool(case.more_tokens))
    return adapter, base, made.eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 40, (1, 9), generator=torch.Generator().manual_seed(7))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.inference_mode():
        out: torch.Tensor = model(**inputs).logits
    return out.float()


@pytest.mark.parametrize("name", CASES)
def test_merged_adapter_has_the_logits_that_peft_s_own_model_has(name: str, tmp_path: Path) -> None:
    adapter, base, theirs = write(tmp_path, CASES[name])
    wanted = logits(theirs)
    with located(str(adapter), str(base), merge_adapter=True) as (merged, _):
        config = json.loads((merged / "config.json").read_text())
        ours = getattr(transformers, config["architectures"][0]).from_pretrained(merged)
        found = logits(ours.eval())
    with theirs.disable_adapter():
        assert not torch.allclose(logits(theirs), wanted, rtol=0.05), "the adapter does nothing"
    near = 1e-5 if CASES[name].dtype == torch.float32 else 0.05
    torch.testing.assert_close(found, wanted, rtol=near, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lora_on_an_embedding_tied_to_the_head_is_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    case = Case({"target_modules": ["q_proj", "embed_tokens"]}, lambda: llama(True), dtype=dtype)
    adapter, base, theirs = write(tmp_path, case)
    wanted = logits(theirs)
    broken = logits(theirs.merge_and_unload())
    assert not torch.allclose(broken, wanted, rtol=0.1), "peft merges it well"
    result = command("drop", adapter, base, "--merge-adapter", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"deltalens: {adapter}: merging it into {base} changes what the model computes"
    )
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_adapter_s_tokenizer_and_chat_template_are_taken(tmp_path: Path) -> None:
    adapter, base, _ = write(tmp_path, Case())
    base_template = transformers.AutoTokenizer.from_pretrained(base)
    base_template.chat_template = "base"
    base_template.save_pretrained(base)
    with located(str(adapter), str(base), merge_adapter=True) as (merged, _):
        assert transformers.AutoTokenizer.from_pretrained(merged).chat_template == "base"
    (adapter / "chat_template.jinja").write_text("of the adapter")
    with located(str(adapter), str(base), merge_adapter=True) as (merged, _):
        loaded = transformers.AutoTokenizer.from_pretrained(merged)
        assert loaded.chat_template == "of the adapter"
        assert len(loaded) == len(tokenizer())
    (adapter / "chat_template.jinja").unlink()
    own = transformers.AutoTokenizer.from_pretrained(base)
    own.add_tokens(["<|new|>"])
    own.chat_template = None
    own.save_pretrained(adapter)
    with located(str(adapter), str(base), merge_adapter=True) as (merged, _):
        loaded = transformers.AutoTokenizer.from_pretrained(merged)
        assert loaded.convert_tokens_to_ids("<|new|>") == len(tokenizer())
        assert loaded.chat_template is None, "the base's template is of another tokenizer"


def test_tokens_that_only_the_adapter_s_tokenizer_has_enlarge_the_embedding(
    tmp_path: Path,
) -> None:
    last = len(tokenizer())
    case = Case({"trainable_token_indices": [last - 1, last]}, more_tokens=1)
    adapter, base, theirs = write(tmp_path, case)
    theirs.save_pretrained(adapter, save_embedding_layers=False)
    own = transformers.AutoTokenizer.from_pretrained(base)
    own.add_tokens(["<|new|>"])
    own.save_pretrained(adapter)
    wanted = logits(theirs)
    with located(str(adapter), str(base), merge_adapter=True) as (merged, _):
        found = logits(transformers.LlamaForCausalLM.from_pretrained(merged).eval())
    torch.testing.assert_close(found[..., :last], wanted[..., :last], rtol=1e-5, atol=1e-5)


def test_a_head_that_neither_has_is_refused_with_its_name(tmp_path: Path) -> None:
    adapter, base, _ = write(tmp_path, Case())
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": "SEQ_CLS"}))
    with (
        pytest.raises(CheckpointError, match=r"neither the adapter nor .* stores score\.weight"),
        located(str(adapter), str(base), merge_adapter=True),
    ):
        pass


def test_peft_s_reason_is_given_whole_and_on_one_line(tmp_path: Path) -> None:
    adapter, _, _ = write(tmp_path, Case())
    other = tmp_path / "other"
    save(initialized(lambda: llama(False, hidden_size=32), 2), other)
    result = command("inspect", adapter, other, "--merge-adapter")
    assert result.exit_code == 2
    assert f"{adapter}: cannot be merged into {other}: " in result.stderr
    assert "size mismatch for" in result.stderr
    assert result.stderr.count("v_proj.lora_B") == 2, "every tensor is named"
    assert len(result.stderr.splitlines()) == 1
