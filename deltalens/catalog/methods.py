"""The methods: how each is called, drawn and printed, what it masks, and what it can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

__all__ = [
    "METHODS",
    "OBJECTIVES",
    "REFERENCES",
    "TRAININGS",
    "Look",
    "Method",
    "has_ratio",
    "options_of",
    "row_in_table3",
]


class Look(NamedTuple):
    """How a method is called and drawn in a picture."""

    label: str
    color: str
    marker: str = ""
    line: Any = "-"


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is known of something that is done to a model, or of a model as it is."""

    look: Look | None = None
    """Where a fine-tune is gone on with (MFT's figures)."""
    on_base: Look | None = None
    """Where a base is trained (GMT's figures)."""
    printed: str = ""
    """Its row in GMT's tables."""
    in_table3: str = ""
    """The same in Table 3, where that has another name."""
    paper: Literal["", "GMT", "MFT"] = ""
    """Which proposes it, or has it as a baseline of its own."""
    masks: Literal["", "gradients", "weights"] = ""
    trains: bool = True
    """Whether there are steps to take."""
    random: bool = True
    """Whether a seed changes anything."""
    from_base: bool = False
    """In a comparison it starts from the base, where all others start from the fine-tune."""
    as_trained: str = ""
    """The method that is trained, where this is one of a comparison's own."""
    options: tuple[str, ...] | None = None
    """Settings that it has beside those of every training; None of what is no training."""


_ON_GRADIENTS = ("include", "exclude")
_ON_WEIGHTS = ("mask_ratio", "blocks", "modules", "include")
_LORA = ("lora_rank", "lora_alpha", "lora_dropout")
_AS_IT_IS: Any = {"trains": False, "random": False}

# The order is MFT's, then GMT's: that of their figures and tables. Okabe and Ito's palette, told
# apart by color-blind readers, near the papers' colors; markers differ as well.
METHODS: Mapping[str, Method] = {
    "base": Method(look=Look("base", "0.6", "", (0, (6, 2, 1, 2))), **_AS_IT_IS),
    "lora": Method(look=Look("LoRA", "#009E73", "D"), from_base=True, options=_LORA),
    "lora-continued": Method(
        look=Look("continued LoRA", "#66C2A5", "d", ":"),
        from_base=True,
        as_trained="lora",
        options=_LORA,
    ),
    "ft": Method(
        look=Look("FFT", "black", "", "--"),
        on_base=Look("before training", "black", "", "--"),
        **_AS_IT_IS,
    ),
    "sft": Method(
        look=Look("continued FFT", "#0072B2", "o", ":"),
        on_base=Look("SFT", "0.35", "x"),
        printed="SFT",
        in_table3="Vanilla SFT",
        options=(),
    ),
    # What plain training is called where it learns from preferences.
    "dpo": Method(look=Look("DPO", "#0072B2", "o", ":")),
    "lora-on-ft": Method(
        look=Look("LoRA on FFT", "#117733", "P", (0, (3, 1, 1, 1))),
        as_trained="lora",
        options=_LORA,
    ),
    "random-mask-weights": Method(
        look=Look("random mask", "#E69F00", "s", (0, (4, 1.5))),
        paper="MFT",
        masks="weights",
        trains=False,
        options=(*_ON_WEIGHTS, "complement"),
    ),
    "random-mask-weights-complement": Method(
        look=Look("random mask, complement", "#E69F00", "x", (0, (1, 2))),
        paper="MFT",
        masks="weights",
        trains=False,
        as_trained="random-mask-weights",
        options=_ON_WEIGHTS,
    ),
    "l1-mask": Method(
        look=Look("L1 mask", "0.5", "v", (0, (2, 1))),
        paper="MFT",
        masks="weights",
        trains=False,
        random=False,
        options=(*_ON_WEIGHTS, "complement"),
    ),
    "l1-mask-complement": Method(
        look=Look("L1 mask, complement", "0.5", "+", (0, (1, 2))),
        paper="MFT",
        masks="weights",
        trains=False,
        random=False,
        as_trained="l1-mask",
        options=_ON_WEIGHTS,
    ),
    "mft": Method(
        look=Look("MFT", "#D55E00", "^"),
        paper="MFT",
        masks="weights",
        options=(*_ON_WEIGHTS, "threshold", "rank_by", "init_std", "score_learning_rate"),
    ),
    # Put back the smallest deltas of a plain training.
    "one-off-drop": Method(
        on_base=Look("one-off drop", "#CC79A7", "^"),
        printed="One-off Drop",
        paper="GMT",
        options=("mask_ratio", "scope"),
    ),
    "hft": Method(
        on_base=Look("HFT", "#009E73", "D"),
        printed="HFT",
        paper="GMT",
        masks="gradients",
        options=_ON_GRADIENTS,
    ),
    "random-mask": Method(
        on_base=Look("random mask", "#E69F00", "s"),
        printed="Random Mask",
        paper="GMT",
        masks="gradients",
        options=("mask_ratio", "apply_to", *_ON_GRADIENTS),
    ),
    "gmt": Method(
        on_base=Look("GMT", "#0072B2", "o"),
        printed="GMT",
        paper="GMT",
        masks="gradients",
        options=("mask_ratio", "scope", "apply_to", *_ON_GRADIENTS),
    ),
}
"""Every method by its name in commands and records; and `base` and `ft`, the models as they are."""
TRAININGS = (
    *("sft", "gmt", "random-mask", "hft"),
    *("mft", "random-mask-weights", "l1-mask", "lora"),
)
"""What `train` takes; what the others are, studies know."""
REFERENCES = ("base", "ft", "sft", "dpo")
"""What others are held against: no mask, no adapter."""
OBJECTIVES = ("sft", "dpo")


def options_of(method: str) -> tuple[str, ...]:
    """The settings that a method has beside those of every training; none of an unknown one."""
    known = METHODS.get(method)
    return (known.options if known else None) or ()


def row_in_table3(method: str) -> str:
    """What GMT's Table 3 calls a method; one that it does not have goes by its name elsewhere."""
    known = METHODS.get(method)
    return (known and (known.in_table3 or known.printed)) or method


def has_ratio(method: str) -> bool:
    """Whether a method knows a mask ratio; True of an unknown one."""
    return method not in METHODS or "mask_ratio" in options_of(method)
