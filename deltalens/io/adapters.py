"""Merging a PEFT adapter into its base, and checking that the merged model computes the same."""

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
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_TEMPLATE_FILES = ("chat_template.*", "additional_chat_templates")
_PROBE_TOKENS = 24
"""Length of the random text on which both models are compared."""
_MOST_FP32_PARAMETERS = 1 << 31
"""Models of at most this size are compared in fp32, so that only the merged weights are rounded."""
_TOLERANCE = 0.1
"""Allowed deviation of the merged model, as a fraction of what the adapter changes; rounding is
allowed on top of it."""


def merge_adapter(adapter: Path, base: Path, folder: Path, trust: bool | None = None) -> Path:
    """Merge a PEFT adapter into its base with peft, and check the result.

    The check runs random tokens through the merged model and through the base with the adapter
    applied: the outputs must agree up to rounding.

    The model class follows from the adapter's task type. If the adapter was trained with an
    enlarged embedding, the base's embedding is enlarged to match. The tokenizer and chat template
    are the adapter's where it has them, and otherwise the base's.

    Args:
        adapter: the adapter's folder.
        base: the folder of the model that the adapter was trained on.
        folder: an existing folder, in which the merged checkpoint is written.
        trust: whether to run code that is stored with the base. None means no, where the caller
            offers no such option.

    Returns:
        `folder`.

    Raises:
        CheckpointError: `adapter` is not an adapter; peft is not installed or cannot merge it (its
            reason is in the message); or the merged model computes something else.
    """
    if not (adapter / _CONFIG).is_file():
        raise CheckpointError(
            f"{adapter}: no {_CONFIG}, so this is not a PEFT adapter; `merge_adapter` needs one"
        )
    if not (adapter / ADAPTER).is_file():
        raise CheckpointError(f"{adapter}: no {ADAPTER}; adapters stored as pickles are not loaded")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise CheckpointError(
            "merging an adapter needs peft: pip install 'deltalens[train]'"
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
    except BaseException as error:  # transformers, peft and safetensors raise all kinds.
        if isinstance(error, CheckpointError) or not is_library_error(error):
            raise
        raise CheckpointError(
            f"{adapter}: cannot be merged into {base}: {describe_error(error)}"
        ) from error
    return folder


def _load(
    adapter: Path, base: Path, stored: list[TensorEntry], dtype: Any, trust: bool | None
) -> Any:
    """Load the base with the adapter applied, in evaluation mode; the same weights every time."""
    import transformers

    task = str(read_settings(adapter / _CONFIG).get("task_type"))
    options: dict[str, Any] = {}
    labels = [entry.shape[0] for entry in stored if is_label_head(entry.name) and entry.shape]
    if task in _LABELED and labels:
        options = {"num_labels": labels[-1], "ignore_mismatched_sizes": True}
    loader = getattr(transformers, _TASKS.get(task, ""), None) or _configured_class(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, info = read_model(base, loader, dtype=dtype, trust=trust, **options)
        rows = _embedding_rows(adapter, stored, model, trust)
        if rows is not None:
            model.resize_token_embeddings(rows, mean_resizing=False)
    in_adapter = {entry.name.replace(".modules_to_save", "") for entry in stored}
    initialized = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    missing = sorted(
        name
        for name in initialized
        if not any(stored_name.endswith(f".{name}") for stored_name in in_adapter)
    )
    if missing:
        raise CheckpointError(
            f"{adapter}: neither the adapter nor {base} stores {', '.join(missing)}, so the merged "
            "model would have random values there; use the base that the adapter was trained on"
        )
    return read_adapter(model, adapter).eval()


def _configured_class(base: Path) -> Any:
    """The model class that the base's configuration names."""
    import transformers

    config = read_settings(base / "config.json")
    return class_of(config) or transformers.AutoModelForCausalLM


def _embedding_rows(
    adapter: Path, stored: list[TensorEntry], model: Any, trust: bool | None
) -> int | None:
    """The number of embedding rows that the adapter needs; None if the base's number fits.

    If the adapter stores an embedding, its rows count. Otherwise its tokenizer counts, where that
    has more tokens than the base has rows.
    """
    base_rows = int(model.get_input_embeddings().weight.shape[0])
    rows = {
        entry.shape[0] for entry in stored if is_adapted_token_weight(entry.name) and entry.shape
    }
    if rows:
        return None if base_rows in rows else max(rows)
    if not any(adapter.glob("tokenizer*")):
        return None
    tokens = len(read_tokenizer(adapter, trust))
    return tokens if tokens > base_rows else None


def _copy_tokenizer(base: Path, adapter: Path, folder: Path) -> None:
    """Copy the adapter's tokenizer, or the base's if it has none; its chat templates always."""
    source = adapter if any(adapter.glob("tokenizer*")) else base
    sources = ((source, _TOKENIZER_FILES + _TEMPLATE_FILES), (adapter, _TEMPLATE_FILES))
    for directory, patterns in sources:
        for file in (file for pattern in patterns for file in directory.glob(pattern)):
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
    parameters = sum(entry.numel for entry in open_checkpoint(base).tensors.values())
    small = parameters <= _MOST_FP32_PARAMETERS
    compute_dtype = torch.promote_types(dtype, torch.float32) if small else dtype
    rounding = (4 if small else 16) * torch.finfo(dtype).eps
    model = _load(adapter, base, stored, compute_dtype, trust)
    inputs = _random_tokens(model.config)
    expected = _outputs(model, inputs)
    with model.disable_adapter():
        without = _outputs(model, inputs)
    loader = type(model.get_base_model())
    del model
    merged, _ = read_model(folder, loader, dtype=compute_dtype, trust=trust)
    actual = _outputs(merged.eval(), inputs)
    if actual.shape != expected.shape:
        raise CheckpointError(
            f"{adapter}: once merged into {base}, the model returns outputs of shape "
            f"{list(actual.shape)}; with the adapter applied, {list(expected.shape)}"
        )
    norm = float(expected.norm())
    error, effect = float((actual - expected).norm()), float((expected - without).norm())
    if not error <= _TOLERANCE * effect + rounding * norm:
        raise CheckpointError(
            f"{adapter}: merging it into {base} changes what the model computes: on random tokens "
            f"the outputs are off by {error / norm:.2g} of their norm, and the adapter itself "
            f"changes them by {effect / norm:.2g}. This happens to an adapter on an embedding that "
            "is tied to the output head: train it with ensure_weight_tying=True (peft), or on "
            "other layers"
        )


def _random_tokens(config: Any) -> dict[str, Tensor]:
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or _PROBE_TOKENS)
    pad = getattr(text, "pad_token_id", None)
    tokens = torch.tensor([token for token in range(int(text.vocab_size)) if token != pad])
    drawn = torch.randint(
        len(tokens), (1, min(_PROBE_TOKENS, longest)), generator=torch.Generator().manual_seed(0)
    )
    inputs = {"input_ids": tokens[drawn]}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    return inputs


@torch.inference_mode()
def _outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    out = model(**inputs)
    fields = (getattr(out, name, None) for name in ("logits", "start_logits", "last_hidden_state"))
    values = next((field for field in fields if isinstance(field, Tensor)), None)
    return (out[0] if values is None else values).double()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' reports and peft's warnings: this module checks what matters itself."""
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
