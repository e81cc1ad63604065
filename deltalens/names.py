"""Read parameter names: block, kind, what is ranked together, and which names a filter selects.

No torch here. Names are those of parameters (`model.layers.7.mlp.up_proj.weight`) or of layers,
which lack the last part (`model.layers.7.mlp.up_proj`). They come from files and may be built to be
slow to match, so no pattern below may backtrack over a part of a name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from deltalens.errors import DeltaLensError, similar_names

__all__ = [
    "SCOPES",
    "Group",
    "Kind",
    "NameFilter",
    "Scope",
    "block_number",
    "block_numbers",
    "block_of",
    "block_stacks",
    "check_scope",
    "group_blocks",
    "in_block",
    "is_adapted_token_weight",
    "is_block",
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
    "split_block",
    "unit_of",
    "unwrap_name",
]

Scope = Literal["tensor", "layer", "global"]
"""Which entries are ranked together: those of one tensor, of one transformer block, or of all
tensors."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

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


def _is_number(part: str) -> bool:
    """Whether a component of a name is a block number, written without leading zeros or signs."""
    return part.isdecimal() and len(part) < 10 and part == str(int(part))


def split_block(layer: str) -> tuple[str, int, str]:
    """Split a layer's name at the number of its block, the first integer component.

    Args:
        layer: a layer's or parameter's name.

    Returns:
        The name of the list of blocks, the block number, and the rest of the name; the whole name,
        -1 and an empty string if the layer is in no block.

    Example:
        >>> split_block("model.layers.7.mlp.up_proj")
        ('model.layers', 7, 'mlp.up_proj')
    """
    parts = layer.split(".")
    for index, part in enumerate(parts):
        if _is_number(part):
            return ".".join(parts[:index]), int(part), ".".join(parts[index + 1 :])
    return layer, -1, ""


def block_of(name: str) -> str:
    """Return the name of a parameter's block.

    Args:
        name: a parameter's or layer's name.

    Returns:
        The name up to and including its first integer component; the whole name if it has none.

    Example:
        >>> block_of("model.layers.7.mlp.up_proj.weight")
        'model.layers.7'
    """
    parts = name.split(".")
    for index, part in enumerate(parts):
        if _is_number(part):
            return ".".join(parts[: index + 1])
    return name


def is_block(name: str) -> bool:
    """Tell whether a name is that of a block.

    Args:
        name: a result of `block_of`.

    Returns:
        True if the name ends in a block number; False for a parameter outside all blocks.
    """
    return _is_number(name.rpartition(".")[2])


def in_block(name: str) -> bool:
    """Tell whether a parameter belongs to a block.

    Args:
        name: a parameter's or layer's name.

    Returns:
        True if the name has an integer component.
    """
    return block_of(name) != name


def block_number(name: str) -> int | None:
    """Return the number of a parameter's block.

    Args:
        name: a parameter's or layer's name.

    Returns:
        The block number; None if the parameter is in no block.
    """
    block = block_of(name)
    return int(block.rpartition(".")[2]) if block != name else None


def block_numbers(names: Iterable[str]) -> list[int]:
    """Collect the block numbers of several parameters.

    Args:
        names: parameter names.

    Returns:
        The distinct block numbers, ascending.
    """
    return sorted({number for name in names if (number := block_number(name)) is not None})


def block_stacks(names: Iterable[str]) -> set[str]:
    """Collect the lists of blocks that parameters belong to.

    Args:
        names: parameter names.

    Returns:
        Names such as `model.layers`; an encoder-decoder model has two.
    """
    return {block_of(name).rpartition(".")[0] for name in names if in_block(name)}


@dataclass(frozen=True)
class Group:
    """Consecutive blocks."""

    size: int
    """The requested number of blocks per group; the last group may hold fewer."""
    blocks: tuple[int, ...]
    """Block numbers, ascending."""

    def __str__(self) -> str:
        first, last = self.blocks[0], self.blocks[-1]
        return f"{first}-{last}" if last > first else f"{first}"


def group_blocks(numbers: Sequence[int], size: int, model: object) -> list[Group]:
    """Divide the blocks of a model into consecutive groups of equal size.

    Args:
        numbers: block numbers, ascending.
        size: blocks per group.
        model: the model's name or path, for the error message.

    Returns:
        The groups in order; the last may hold fewer blocks than the others.

    Raises:
        DeltaLensError: the size is not between 1 and the number of blocks.
    """
    if not 1 <= size <= len(numbers):
        raise DeltaLensError(
            f"groups of {size}: must be from 1 to {len(numbers)}, the number of blocks in {model}"
        )
    starts = range(0, len(numbers), size)
    return [Group(size, tuple(numbers[start : start + size])) for start in starts]


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
    parts = [part for part in name.split(".") if not _is_number(part)]
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


def unit_of(name: str, scope: Scope) -> str:
    """Return the ranking unit of a parameter: parameters with the same unit are ranked together.

    Outside the blocks, scope `layer` ranks every parameter on its own.

    Args:
        name: a parameter's name.
        scope: what is ranked together.

    Returns:
        The parameter's name, its block's name, or `all`.
    """
    if scope == "tensor":
        return name
    return block_of(name) if scope == "layer" else "all"


def check_scope(scope: str) -> Scope:
    """Check a scope given as text.

    Args:
        scope: `tensor`, `layer` or `global`.

    Returns:
        The scope.

    Raises:
        DeltaLensError: the text is none of the three.
    """
    for valid in SCOPES:
        if scope == valid:
            return valid
    raise DeltaLensError(f"scope {scope!r}: choose one of {', '.join(SCOPES)}")


class NameFilter:
    """Select names by regular expressions.

    `name in filter` tells whether a single name is selected, and remembers the answer.

    Args:
        include: a name must match this regular expression somewhere; None: all names do.
        exclude: a name must not match this regular expression anywhere; None: none does.

    Raises:
        DeltaLensError: a pattern is not a valid regular expression.
    """

    def __init__(self, include: str | None = None, exclude: str | None = None) -> None:
        self._patterns = {
            option: pattern
            for option, pattern in (("include", include), ("exclude", exclude))
            if pattern is not None
        }
        compiled = {option: _compiled(option, text) for option, text in self._patterns.items()}
        self._include, self._exclude = compiled.get("include"), compiled.get("exclude")
        self._cache: dict[str, bool] = {}

    def matches(self, *names: str) -> bool:
        """Tell whether an object that goes by several names is selected.

        Args:
            names: all names of the object.

        Returns:
            True if at least one name matches `include` and none matches `exclude`.
        """
        include, exclude = self._include, self._exclude
        return (include is None or any(include.search(name) for name in names)) and not (
            exclude is not None and any(exclude.search(name) for name in names)
        )

    def __contains__(self, name: str) -> bool:
        """Whether a single name is selected; cached, as it is called in every training step."""
        selected = self._cache.get(name)
        if selected is None:
            selected = self._cache[name] = self.matches(name)
        return selected

    def explain_no_match(self, names: Iterable[str], what: str) -> str:
        """Build the error message for a filter that selects nothing.

        Args:
            names: the names that exist; the nearest ones are suggested.
            what: what the names are names of, such as `parameter`.

        Returns:
            One line of text.
        """
        if not self._patterns:
            return f"there is no {what}"
        patterns = " and ".join(f"{option} {text!r}" for option, text in self._patterns.items())
        verb = "leave" if len(self._patterns) > 1 else "matches" if self._include else "leaves"
        existing = list(names)
        similar = similar_names(next(iter(self._patterns.values())), existing, 3, 0.1)
        shown = ", ".join(similar or existing[:3])
        return f"{patterns} {verb} no {what}" + (
            f"; there are names such as {shown}" if shown else ""
        )


def _compiled(option: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise DeltaLensError(
            f"{option}: {pattern!r} is not a valid regular expression: {error}"
        ) from error
