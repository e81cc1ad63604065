"""What the names of parameters say: block, kind, and what is ranked together; and which of them are
chosen. No torch here.

Names are those of parameters (`model.layers.7.mlp.up_proj.weight`) or of layers, which have no last
part (`model.layers.7.mlp.up_proj`). They come from files, and may be made to be slow: no pattern
may look at a part of one twice.
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
"""What is ranked together: every tensor for itself, a transformer block, or all of them."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

Kind = Literal["attention", "mlp", "expert", "norm", "embedding", "head", "other"]
"""What a parameter is for. `expert`: of one among several MLPs."""

# The first that a name matches counts; all but the head and the embedding look inside the block.
_HEAD = re.compile(r"\b(lm_head|output_projection|embed_out|score)\b", re.IGNORECASE)
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe)(\.|$)", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|[._])ln([._\d]|\w?(\.|$))", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention|(^|[._])att([._]|$)", re.IGNORECASE)
_EXPERT = re.compile(r"\b(shared_)?experts?(_\d+)?\b", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_forward|expert|intermediate", re.IGNORECASE)
_PROJECTION = re.compile(r"\b([qkvo]_proj|query|key|value|qkv)\b", re.IGNORECASE)
_DENSE = re.compile(r"dense|\b(gate|up|down)(_proj)?\b|\bfc_?\w*\b|\bw[123]\b", re.IGNORECASE)

_TASK_HEADS = ("_score", "_qa_outputs", "_predictions", "_pooler", "_summary")
"""What a task brings with it: of another shape, it is another tensor."""
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
    """Whether a part of a name is the number of a block: one that int() gives back as it stands."""
    return part.isdecimal() and len(part) < 10 and part == str(int(part))


def split_block(layer: str) -> tuple[str, int, str]:
    """A layer's name around the number of its block, its first integer component.

    Returns:
        The name of the list of blocks, the number, and what follows; the whole name, -1 and nothing
        where it is in no block.

    Example:
        >>> split_block("model.layers.7.mlp.up_proj")
        ('model.layers', 7, 'mlp.up_proj')
    """
    parts = layer.split(".")
    for place, part in enumerate(parts):
        if _is_number(part):
            return ".".join(parts[:place]), int(part), ".".join(parts[place + 1 :])
    return layer, -1, ""


def block_of(name: str) -> str:
    """A parameter's block: its name up to and including the first integer component, or all of it.

    Example:
        >>> block_of("model.layers.7.mlp.up_proj.weight")
        'model.layers.7'
    """
    parts = name.split(".")
    for place, part in enumerate(parts):
        if _is_number(part):
            return ".".join(parts[: place + 1])
    return name


def is_block(name: str) -> bool:
    """Whether it is what `block_of` says of a parameter in a block."""
    return _is_number(name.rpartition(".")[2])


def in_block(name: str) -> bool:
    """Whether a parameter belongs to a block."""
    return block_of(name) != name


def block_number(name: str) -> int | None:
    """The number of a parameter's block; None if it is in none."""
    block = block_of(name)
    return int(block.rpartition(".")[2]) if block != name else None


def block_numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the blocks that parameters belong to, ascending."""
    return sorted({number for name in names if (number := block_number(name)) is not None})


def block_stacks(names: Iterable[str]) -> set[str]:
    """The lists of blocks that parameters belong to: `model.layers`, ..."""
    return {block_of(name).rpartition(".")[0] for name in names if in_block(name)}


@dataclass(frozen=True)
class Group:
    """Consecutive blocks."""

    size: int
    """As asked: the last group can hold fewer."""
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        first, last = self.blocks[0], self.blocks[-1]
        return f"{first}-{last}" if last > first else f"{first}"


def group_blocks(numbers: Sequence[int], size: int, model: object) -> list[Group]:
    """A model's blocks in groups: the first `size`, the next, ...; the last can hold fewer.

    Args:
        numbers: of the blocks, ascending.
        size: blocks in a group.
        model: whose they are, for messages.

    Raises:
        DeltaLensError: the size is no number from 1 to the blocks there are.
    """
    if not 1 <= size <= len(numbers):
        raise DeltaLensError(
            f"groups of {size}: from 1 to {len(numbers)}, the number of blocks of {model}"
        )
    starts = range(0, len(numbers), size)
    return [Group(size, tuple(numbers[start : start + size])) for start in starts]


def kind_of(name: str) -> Kind:
    """What a parameter or a layer is for, whatever the architecture calls it: `SelfAttention` is
    attention as `self_attn` is. What no word in the name tells is `other`."""
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
    """A parameter's projection: the last part of its name before `weight` or `bias`."""
    parts = [part for part in name.split(".") if not _is_number(part)]
    named = [part for part in parts if part not in ("weight", "bias")]
    return named[-1] if named else name


def is_in_task_head(name: str) -> bool:
    """Whether a parameter is inside a module that is called as the heads of tasks are."""
    return any(
        "classifi" in part or part.endswith("head") or f"_{part}".endswith(_TASK_HEADS)
        for part in name.split(".")[:-1]
    )


def is_quantization_data(name: str) -> bool:
    """Whether a tensor says how another one was quantized."""
    last = name.rpartition(".")[2]
    return name.endswith(_QUANTIZATION) or "weight_scale" in last or "quant_state" in name


def is_buffer(name: str) -> bool:
    """Whether a tensor is none of the weights. The look before the pattern passes nearly all."""
    weight = name.endswith(".weight") and "rotary_emb." not in name
    return not weight and _BUFFER.search(name) is not None


def may_change_rows(name: str) -> bool:
    """Whether a parameter can get more or fewer rows in a fine-tune, as embeddings do."""
    return _ROWS.search(name) is not None


def is_input_embedding(name: str) -> bool:
    """Whether a weight is called as the embedding of a model's tokens is."""
    return _INPUT.search(name) is not None


def is_output_embedding(name: str) -> bool:
    """Whether a weight is called as the head is that may be tied to the input embedding."""
    return _OUTPUT.search(name) is not None


def may_be_output_embedding(name: str) -> bool:
    """The same, generously: where transformers can be asked, and it takes time."""
    return _MAY_BE_OUTPUT.search(name) is not None


def is_label_head(name: str) -> bool:
    """Whether a weight of an adapter's is the head that tells labels apart."""
    return _LABELS.search(name) is not None


def is_adapted_token_weight(name: str) -> bool:
    """Whether a weight of an adapter's has a row for every token."""
    return _ADAPTED.search(name) is not None


@functools.lru_cache(maxsize=1 << 16)
def unwrap_name(name: str) -> str:
    """A parameter's name without what compiling, sharding and checkpointing wrap around modules."""
    return _WRAPPERS.sub("", name).removeprefix(".")


def unit_of(name: str, scope: Scope) -> str:
    """With which others a parameter is ranked: all those of which this says the same. Outside the
    blocks, `layer` ranks every parameter for itself."""
    if scope == "tensor":
        return name
    return block_of(name) if scope == "layer" else "all"


def check_scope(scope: str) -> Scope:
    """A scope's name, checked.

    Raises:
        DeltaLensError: it is none of tensor, layer, global.
    """
    for known in SCOPES:
        if scope == known:
            return known
    raise DeltaLensError(f"scope {scope!r}: choose one of {', '.join(SCOPES)}")


class NameFilter:
    """Which names take part.

    Args:
        include, exclude: regular expressions, searched in the names; None: all, and none.

    Raises:
        DeltaLensError: one is no regular expression.
    """

    def __init__(self, include: str | None = None, exclude: str | None = None) -> None:
        self._given = {
            option: pattern
            for option, pattern in (("include", include), ("exclude", exclude))
            if pattern is not None
        }
        compiled = {option: _compiled(option, text) for option, text in self._given.items()}
        self._want, self._refuse = compiled.get("include"), compiled.get("exclude")
        self._known: dict[str, bool] = {}

    def matches(self, *names: str) -> bool:
        """Whether what has all of these names takes part."""
        want, refuse = self._want, self._refuse
        return (want is None or any(want.search(name) for name in names)) and not (
            refuse is not None and any(refuse.search(name) for name in names)
        )

    def __contains__(self, name: str) -> bool:
        """Whether what has this name takes part; asked in every step of a training."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self.matches(name)
        return found

    def explain_no_match(self, names: Iterable[str], what: str) -> str:
        """What is said where nothing is left: with the nearest of the names there are.

        Args:
            names: there are.
            what: is not left, such as `parameter`.
        """
        given = " and ".join(f"{option} {text!r}" for option, text in self._given.items())
        leave = "leave" if len(self._given) > 1 else "leaves"
        there = list(names)
        near = similar_names(next(iter(self._given.values()), ""), there, 3, 0.1) or there[:3]
        looks = f"; its names look like {', '.join(near)}" if near else ""
        return f"{given} {leave} no {what}{looks}" if given else f"there is no {what}"


def _compiled(option: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise DeltaLensError(f"{option}: {pattern!r} is no regular expression: {error}") from error
