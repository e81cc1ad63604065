"""The role of a parameter, by its name: attention, MLP, norm, embedding, head and the like.

Names come from files and may be built to be slow to match, so no pattern below may backtrack over a
part of a name.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

from deltalens.names.blocks import in_block, is_number, split_block

__all__ = [
    "Kind",
    "is_adapted_token_weight",
    "is_buffer",
    "is_in_task_head",
    "is_input_embedding",
    "is_label_head",
    "is_output_embedding",
    "is_quantization_data",
    "kind_of",
    "may_be_output_embedding",
    "may_change_rows",
    "projection_of",
    "unwrap_name",
]

Kind = Literal["attention", "mlp", "expert", "norm", "embedding", "head", "other"]
"""The role of a parameter. `expert` is one of several parallel MLPs."""

# Tried in this order, the first match wins. All but the head and embedding patterns are matched
# against the part of the name inside the block.
_HEAD = re.compile(r"\b(lm_head|output_projection|embed_out|score)\b", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe)(\.|$)", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|[._])ln([._\d]|\w?(\.|$))", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention|(^|[._])att([._]|$)", re.IGNORECASE)
_EXPERT = re.compile(r"\b(shared_)?experts?(_\d+)?\b", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_forward|expert|intermediate", re.IGNORECASE)
_PROJECTION = re.compile(r"\b([qkvo]_proj|query|key|value|qkv)\b", re.IGNORECASE)
_DENSE = re.compile(r"dense|\b(gate|up|down)(_proj)?\b|\bfc_?\w*\b|\bw[123]\b", re.IGNORECASE)

_TASK_HEADS = ("_score", "_qa_outputs", "_predictions", "_pooler", "_summary")
"""Endings of the modules that a task adds to a model; their shapes differ between tasks."""
_BUFFER = re.compile(
    r"(^|\.)(rotary_emb\.(inv|cos|sin)|(attn|attention|self_attn)\.rotary_emb\."
    r"|((attn|attention|self_attn)\.(masked_)?bias|position_ids|token_type_ids"
    r"|num_batches_tracked|running_(mean|var)|final_logits_bias)$)"
)
_QUANTIZATION = ("scale", "scales", "scale_inv", "absmax", "quant_map", "zeros")
_ROWS = re.compile(
    r"(embed|wte|wpe|shared|lm_head|predictions|output_projection|decoder\.bias|score)"
)
_INPUT = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|shared)\.weight$")
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|predictions\.decoder|output_projection)\.weight$")
_LABELS = re.compile(r"\.(score|classifier(\.out_proj)?|classification_head\.out_proj)\.weight$")
_ADAPTED = re.compile(
    r"\.(embed_tokens|wte|word_embeddings|embed_in|shared|lm_head|embed_out)"
    r"(\.modules_to_save|\.base_layer)?(\.default)?\.weight$"
)
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_MAY_BE_OUTPUT = re.compile(
    r"(head|embed_out|predictions|projection|proj_out|projector|decoder|output)(\.\w+)?\.weight$"
)


def kind_of(name: str) -> Kind:
    """Classify a parameter or layer by its name, across the naming schemes of many architectures.

    Args:
        name: a parameter's or layer's name.

    Returns:
        The kind; `other` if no known word occurs in the name.
    """
    if _HEAD.search(name) or (is_in_task_head(name) and not in_block(name)):
        return "head"
    stack, number, rest = split_block(name)
    inside = rest if number >= 0 else stack
    if _NORM.search(inside):
        return "norm"
    if _ATTENTION.search(inside):
        return "attention"
    if _EMBEDDING.search(name):
        return "embedding"
    if _EXPERT.search(inside):
        return "expert"
    if _MLP.search(inside):
        return "mlp"
    if _PROJECTION.search(inside):
        return "attention"
    return "mlp" if _DENSE.search(inside) else "other"


def projection_of(name: str) -> str:
    """Return the projection that a parameter belongs to, such as `q_proj`.

    Args:
        name: a parameter's name.

    Returns:
        The last component of the name before `weight` or `bias`, block numbers left out.
    """
    parts = [part for part in name.split(".") if not is_number(part)]
    named = [part for part in parts if part not in ("weight", "bias")]
    return named[-1] if named else name


def is_in_task_head(name: str) -> bool:
    """Tell whether a parameter is inside a module that is named like a task-specific head.

    Args:
        name: a parameter's name.

    Returns:
        True if one of the modules around the parameter has such a name.
    """
    return any(
        "classifi" in part or part.endswith("head") or f"_{part}".endswith(_TASK_HEADS)
        for part in name.split(".")[:-1]
    )


def is_quantization_data(name: str) -> bool:
    """Tell whether a tensor describes how another tensor was quantized (scales, zero points).

    Args:
        name: a stored tensor's name.

    Returns:
        True for quantization metadata.
    """
    last = name.rpartition(".")[2]
    return name.endswith(_QUANTIZATION) or "weight_scale" in last or "quant_state" in name


def is_buffer(name: str) -> bool:
    """Tell whether a stored tensor is a buffer rather than a weight.

    Args:
        name: a stored tensor's name.

    Returns:
        True for buffers such as rotary frequencies and causal masks.
    """
    weight = name.endswith(".weight") and "rotary_emb." not in name
    return not weight and _BUFFER.search(name) is not None


def may_change_rows(name: str) -> bool:
    """Tell whether a parameter may have more or fewer rows in a fine-tune, as embeddings do.

    Args:
        name: a parameter's name.

    Returns:
        True for embeddings and for heads over tokens or labels.
    """
    return _ROWS.search(name) is not None


def is_input_embedding(name: str) -> bool:
    """Tell whether a weight is named like the embedding of a model's input tokens.

    Args:
        name: a parameter's name.

    Returns:
        True if the name is one of the usual ones.
    """
    return _INPUT.search(name) is not None


def is_output_embedding(name: str) -> bool:
    """Tell whether a weight is named like the head that may be tied to the input embedding.

    Args:
        name: a parameter's name.

    Returns:
        True if the name is one of the usual ones.
    """
    return _OUTPUT.search(name) is not None


def may_be_output_embedding(name: str) -> bool:
    """A generous form of `is_output_embedding`, used before the slow question to transformers.

    Args:
        name: a parameter's name.

    Returns:
        False only if the weight cannot be an output embedding.
    """
    return _MAY_BE_OUTPUT.search(name) is not None


def is_label_head(name: str) -> bool:
    """Tell whether a weight stored with an adapter is a classification head.

    Args:
        name: a tensor's name in the adapter's file.

    Returns:
        True if the weight has one row per label.
    """
    return _LABELS.search(name) is not None


def is_adapted_token_weight(name: str) -> bool:
    """Tell whether a weight stored with an adapter has one row per token.

    Args:
        name: a tensor's name in the adapter's file.

    Returns:
        True for embeddings and output heads that the adapter replaces.
    """
    return _ADAPTED.search(name) is not None


@functools.lru_cache(maxsize=1 << 16)
def unwrap_name(name: str) -> str:
    """Remove the name components that torch.compile, FSDP and checkpointing wrappers add.

    Args:
        name: a parameter's name in the wrapped model.

    Returns:
        The parameter's name in the plain model.
    """
    return _WRAPPERS.sub("", name).removeprefix(".")
