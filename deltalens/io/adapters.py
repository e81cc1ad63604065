"""Merging a PEFT adapter into its base, and a look whether the result is the same model."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltalens.errors import CheckpointError, describe_error, is_library_error
from deltalens.io.checkpoint import ADAPTER, open_checkpoint
from deltalens.io.header import TensorEntry, read_header
from deltalens.io.plain_json import read_settings
from deltalens.io.pretrained import class_of, read_adapter, read_model, read_tokenizer
from deltalens.names import is_adapted_token_weight, is_label_head

__all__ = ["merge_adapter"]

_CONFIG = "adapter_config.json"
_TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
_LABELED = ("SEQ_CLS", "TOKEN_CLS")
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_TEMPLATES = ("chat_template.*", "additional_chat_templates")
_TOKENS = 24
_WIDE = 1 << 31
"""Parameters up to which both models compute in fp32, so that only weights are rounded."""
_SHARE = 0.1
"""Of what the adapter changes: by so much the merged model may miss it, beside rounding."""


def merge_adapter(adapter: Path, base: Path, folder: Path, trust: bool | None = None) -> Path:
    """Merge a PEFT adapter into its base, through peft, and check that it is the same model: on
    random tokens its outputs equal those of the base with the adapter on it, up to rounding.

    The class is the adapter's task's. An embedding that was enlarged for the adapter is enlarged,
    and the tokenizer and the chat template are the adapter's where it brings them.

    Args:
        adapter: the adapter's folder.
        base: the folder of the model that it was trained on.
        folder: where to write the merged checkpoint; it exists.
        trust: run code that the base brings. None: whoever asks has no such option.

    Returns:
        The folder.

    Raises:
        CheckpointError: no adapter; peft is not installed, or cannot merge it (with its reason);
            or what comes out is another model.
    """
    if not (adapter / _CONFIG).is_file():
        raise CheckpointError(f"{adapter}: no {_CONFIG}; --merge-adapter is for adapters")
    if not (adapter / ADAPTER).is_file():
        raise CheckpointError(f"{adapter}: no {ADAPTER}; pickles are not loaded")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            "--merge-adapter needs peft: pip install 'deltalens[train]'"
        ) from error
    _, stored = read_header(adapter / ADAPTER)
    try:
        with _quiet():
            model = _load(adapter, base, stored, "auto", trust)
            dtype = model.dtype
            model.merge_and_unload().save_pretrained(folder)
            del model
            _copy_tokenizer(base, adapter, folder)
            _check_same(adapter, base, folder, stored, dtype, trust)
    except BaseException as error:  # Of transformers, peft or safetensors: of any kind.
        if isinstance(error, CheckpointError) or not is_library_error(error):
            raise
        raise CheckpointError(
            f"{adapter}: cannot be merged into {base}: {describe_error(error)}"
        ) from error
    return folder


def _load(
    adapter: Path, base: Path, stored: list[TensorEntry], dtype: Any, trust: bool | None
) -> Any:
    """The base with the adapter on it, in evaluation mode; the same each time."""
    import transformers

    task = str(read_settings(adapter / _CONFIG).get("task_type"))
    spec: dict[str, Any] = {}
    labels = [entry.shape[0] for entry in stored if is_label_head(entry.name) and entry.shape]
    if task in _LABELED and labels:
        spec = {"num_labels": labels[-1], "ignore_mismatched_sizes": True}
    loader = getattr(transformers, _TASKS.get(task, ""), None) or _own_class(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, info = read_model(base, loader, dtype=dtype, trust=trust, **spec)
        rows = _rows(adapter, stored, model, trust)
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
    brought = {entry.name.replace(".modules_to_save", "") for entry in stored}
    fresh = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    lacking = sorted(
        name for name in fresh if not any(known.endswith(f".{name}") for known in brought)
    )
    if lacking:
        raise CheckpointError(
            f"{adapter}: neither it nor {base} holds {', '.join(lacking)}: the merged model would "
            "be random there; give the base that the adapter was trained on"
        )
    return read_adapter(model, adapter).eval()


def _own_class(base: Path) -> Any:
    """The class that the base's configuration names."""
    import transformers

    config = read_settings(base / "config.json")
    return class_of(config) or transformers.AutoModelForCausalLM


def _rows(adapter: Path, stored: list[TensorEntry], model: Any, trust: bool | None) -> int | None:
    """How many tokens the adapter knows, where the base's embedding has another number: as many as
    the embedding that it stores has rows, or else its tokenizer has tokens beyond the base's."""
    have = int(model.get_input_embeddings().weight.shape[0])
    rows = {
        entry.shape[0] for entry in stored if is_adapted_token_weight(entry.name) and entry.shape
    }
    if rows:
        return None if have in rows else max(rows)
    if not any(adapter.glob("tokenizer*")):
        return None
    count = len(read_tokenizer(adapter, trust))
    return count if count > have else None


def _copy_tokenizer(base: Path, adapter: Path, folder: Path) -> None:
    """The adapter's where it has one, else the base's; its chat templates in any case."""
    source = adapter if any(adapter.glob("tokenizer*")) else base
    for place, patterns in ((source, _TOKENIZER + _TEMPLATES), (adapter, _TEMPLATES)):
        for file in (file for pattern in patterns for file in place.glob(pattern)):
            if file.is_dir():
                shutil.copytree(file, folder / file.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(file, folder / file.name)


def _check_same(
    adapter: Path,
    base: Path,
    folder: Path,
    stored: list[TensorEntry],
    dtype: torch.dtype,
    trust: bool | None,
) -> None:
    """Refuse a merged checkpoint that computes something else than the base with its adapter."""
    small = sum(entry.numel for entry in open_checkpoint(base).tensors.values()) <= _WIDE
    wide = torch.promote_types(dtype, torch.float32) if small else dtype
    rounding = (4 if small else 16) * torch.finfo(dtype).eps
    model = _load(adapter, base, stored, wide, trust)
    inputs = _random_tokens(model.config)
    wanted = _outputs(model, inputs)
    with model.disable_adapter():
        plain = _outputs(model, inputs)
    loader = type(model.get_base_model())
    del model
    merged, _ = read_model(folder, loader, dtype=wide, trust=trust)
    found = _outputs(merged.eval(), inputs)
    if found.shape != wanted.shape:
        raise CheckpointError(
            f"{adapter}: merged into {base} it gives outputs of shape {list(found.shape)}, where "
            f"the adapter gives {list(wanted.shape)}"
        )
    size = float(wanted.norm())
    off, changed = float((found - wanted).norm()), float((wanted - plain).norm())
    if not off <= _SHARE * changed + rounding * size:
        raise CheckpointError(
            f"{adapter}: merged into {base} it is another model: on random tokens its outputs are "
            f"off by {off / size:.2g} of their size, and the adapter changes them by "
            f"{changed / size:.2g}. An adapter on an embedding that is tied to the head "
            "merges so; train it with ensure_weight_tying=True (peft), or on other layers"
        )


def _random_tokens(config: Any) -> dict[str, Tensor]:
    text = config.get_text_config()
    count = int(getattr(text, "max_position_embeddings", None) or _TOKENS)
    pad = getattr(text, "pad_token_id", None)
    tokens = torch.tensor([token for token in range(int(text.vocab_size)) if token != pad])
    places = torch.randint(
        len(tokens), (1, min(_TOKENS, count)), generator=torch.Generator().manual_seed(0)
    )
    inputs = {"input_ids": tokens[places]}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


@torch.inference_mode()
def _outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    out = model(**inputs)
    named = (getattr(out, name, None) for name in ("logits", "start_logits", "last_hidden_state"))
    found = next((values for values in named if isinstance(values, Tensor)), None)
    return (out[0] if found is None else found).double()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' reports and peft's advice: what matters is checked and said here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
