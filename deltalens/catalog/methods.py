"""The methods: how each is called, drawn and printed, what it masks, and which class trains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from deltalens.catalog.plugins import find, plugins
from deltalens.errors import DeltaLensError

__all__ = [
    "CLASSIFICATION",
    "LABELED",
    "METHODS",
    "OBJECTIVES",
    "REFERENCES",
    "REGRESSION",
    "TRAININGS",
    "Look",
    "MethodFacts",
    "facts_of",
    "has_ratio",
    "look_of",
    "method_name",
    "package_methods",
    "row_in_table3",
]


class Look(NamedTuple):
    """How a method is called and drawn in a picture."""

    label: str
    color: str
    marker: str = ""
    line: Any = "-"


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What is known of something that is done to a model, or of a model as it is."""

    about: str = ""
    """One line for help texts and lists."""
    look: Look | None = None
    """How it is drawn where a fine-tune is trained further (MFT's figures)."""
    on_base: Look | None = None
    """How it is drawn where a base is trained (GMT's figures)."""
    printed: str = ""
    """Its row in GMT's tables."""
    in_table3: str = ""
    """The same in Table 3, where that has another name."""
    in_mft: str = ""
    """Its row in MFT's Tables 1 and 2."""
    in_mft_across: str = ""
    """The same in MFT's Tables 5 and 6, without the domain."""
    in_mft_global: str = ""
    """The same in MFT's Table 3."""
    paper: Literal["", "GMT", "MFT", "SPEFT"] = ""
    """Which paper proposes it, or has it as a baseline of its own."""
    masks: Literal["", "gradients", "weights"] = ""
    """What it masks; empty: nothing."""
    ratio: bool = False
    """Whether it has a mask ratio (a setting called `mask_ratio`)."""
    trains: bool = True
    """Whether there are optimizer steps to take."""
    random: bool = True
    """Whether a seed changes anything."""
    from_base: bool = False
    """In a comparison it starts from the base, where all others start from the fine-tune."""
    or_model: bool = False
    """Where a comparison has no base, it starts from the model: a base itself, as in SPEFT."""
    as_trained: str = ""
    """The method that is trained, where this one exists in studies only."""
    code: str = ""
    """`module:class` of its settings and its training, a `deltalens.training.methods.Method`."""

    @property
    def as_it_is(self) -> bool:
        """Whether it is a model to which nothing is done."""
        return not (self.trains or self.masks)


_PLAIN = "deltalens.training.methods.plain"
_GRADIENTS = "deltalens.training.methods.gradients"
_WEIGHTS = "deltalens.training.methods.weights"
_ADAPTERS = "deltalens.training.methods.adapters"
_AS_IT_IS: Any = {"trains": False, "random": False}
_LORA: Any = {"from_base": True}
_REMOVED: Any = {"paper": "MFT", "masks": "weights", "ratio": True, "trains": False}

# The order is MFT's, then GMT's: that of their figures and tables. Okabe and Ito's palette, told
# apart by color-blind readers, near the papers' colors; markers differ as well.
METHODS: Mapping[str, MethodFacts] = {
    "base": MethodFacts(
        about="The base as it is.",
        look=Look("base", "0.6", "", (0, (6, 2, 1, 2))),
        in_mft="Pre-Trained Model (Lower Bound)",
        in_mft_across="[Lower Bound] Base Model",
        in_mft_global="Pre-Trained Model",
        code=f"{_PLAIN}:Base",
        **_AS_IT_IS,
    ),
    "lora": MethodFacts(
        about="Low-rank adapters on every linear layer, merged at the end.",
        look=Look("LoRA", "#009E73", "D"),
        in_mft="LoRA",
        code=f"{_ADAPTERS}:Lora",
        or_model=True,
        **_LORA,
    ),
    "pissa": MethodFacts(
        about="Low-rank adapters that begin as a weight's principal part (arXiv 2404.02948).",
        look=Look("PiSSA", "#E69F00", "p"),
        code=f"{_ADAPTERS}:Pissa",
        or_model=True,
        **_LORA,
    ),
    "lora-continued": MethodFacts(
        about="LoRA from the base, then another LoRA on its merged result, as long again.",
        look=Look("continued LoRA", "#66C2A5", "d", ":"),
        as_trained="lora",
        in_mft="Continued LoRA",
        code=f"{_ADAPTERS}:LoraContinued",
        **_LORA,
    ),
    "ft": MethodFacts(
        about="The model as it is.",
        look=Look("FFT", "black", "", "--"),
        on_base=Look("before training", "black", "", (0, (6, 2, 1, 2))),
        in_mft="FFT (Upper Bound)",
        in_mft_across="[Upper Bound] FFT",
        in_mft_global="FFT",
        code=f"{_PLAIN}:Ft",
        **_AS_IT_IS,
    ),
    "sft": MethodFacts(
        about="Plain fine-tuning of all weights.",
        look=Look("continued FFT", "#0072B2", "o", ":"),
        on_base=Look("SFT", "0.35", "x", "--"),
        printed="SFT",
        in_table3="Vanilla SFT",
        in_mft="Continued FFT",
        in_mft_across="FFT + Continued FFT",
        in_mft_global="Continued FFT",
        code=f"{_PLAIN}:Sft",
    ),
    # What plain training is called where it learns from preferences.
    "dpo": MethodFacts(look=Look("DPO", "#0072B2", "o", ":")),
    "lora-on-ft": MethodFacts(
        about="LoRA on the fine-tune instead of the base.",
        look=Look("LoRA on FFT", "#117733", "P", (0, (3, 1, 1, 1))),
        as_trained="lora",
        code=f"{_ADAPTERS}:LoraOnFt",
    ),
    "random-mask-weights": MethodFacts(
        about="Remove a random share of the weights; no training.",
        look=Look("random mask", "#E69F00", "s", (0, (4, 1.5))),
        in_mft="Random Mask w/ Upper Bound",
        in_mft_across="Random Mask w/ Upper Bound",
        code=f"{_WEIGHTS}:RandomMaskWeights",
        **_REMOVED,
    ),
    "random-mask-weights-complement": MethodFacts(
        about="Remove the weights that random-mask-weights keeps.",
        look=Look("random mask, complement", "#E69F00", "x", (0, (1, 2))),
        as_trained="random-mask-weights",
        code=f"{_WEIGHTS}:RandomMaskWeightsComplement",
        **_REMOVED,
    ),
    "l1-mask": MethodFacts(
        about="Remove the smallest weights; no training.",
        look=Look("L1 mask", "0.5", "v", (0, (2, 1))),
        random=False,
        in_mft="L1 Mask w/ Upper Bound",
        in_mft_across="L1 Mask w/ Upper Bound",
        code=f"{_WEIGHTS}:L1Mask",
        **_REMOVED,
    ),
    "l1-mask-complement": MethodFacts(
        about="Remove the weights that l1-mask keeps.",
        look=Look("L1 mask, complement", "0.5", "+", (0, (1, 2))),
        random=False,
        as_trained="l1-mask",
        code=f"{_WEIGHTS}:L1MaskComplement",
        **_REMOVED,
    ),
    "mft": MethodFacts(
        about="Mask Fine-Tuning: learn which weights to remove (arXiv 2503.22764).",
        look=Look("MFT", "#D55E00", "^"),
        paper="MFT",
        masks="weights",
        ratio=True,
        in_mft="MFT w/ Upper Bound (Ours)",
        in_mft_across="[Ours] FFT + Mask",
        code=f"{_WEIGHTS}:Mft",
    ),
    "speft": MethodFacts(
        about="Train the entries with the highest salience only (arXiv 2412.13488).",
        look=Look("SPEFT", "#CC79A7", "*"),
        printed="SPEFT",
        paper="SPEFT",
        code="deltalens.training.methods.sparse:Speft",
        or_model=True,
        **_LORA,
    ),
    # Put back the smallest deltas of a plain training.
    "one-off-drop": MethodFacts(
        about="Plain fine-tuning, then put the smallest deltas back to the base.",
        on_base=Look("one-off drop", "#CC79A7", "^", "-."),
        printed="One-off Drop",
        paper="GMT",
        ratio=True,
        as_trained="sft",
        code=f"{_GRADIENTS}:OneOffDrop",
    ),
    "hft": MethodFacts(
        about="Half Fine-Tuning: half of the layers stay frozen.",
        on_base=Look("HFT", "#009E73", "D", (0, (1, 1.2))),
        printed="HFT",
        paper="GMT",
        masks="gradients",
        code=f"{_GRADIENTS}:Hft",
    ),
    "random-mask": MethodFacts(
        about="Mask a random share of every gradient, drawn anew in each step.",
        on_base=Look("random mask", "#E69F00", "s", (0, (4, 1.5))),
        printed="Random Mask",
        paper="GMT",
        masks="gradients",
        ratio=True,
        code=f"{_GRADIENTS}:RandomMask",
    ),
    "gmt": MethodFacts(
        about="Gradient-Mask Tuning: only the largest gradients update (arXiv 2406.15330).",
        on_base=Look("GMT", "#0072B2", "o"),
        printed="GMT",
        paper="GMT",
        masks="gradients",
        ratio=True,
        code=f"{_GRADIENTS}:Gmt",
    ),
}
"""Every method of ours by its name in commands and records; and `base` and `ft`, the models as they
are."""
TRAININGS = (
    *("sft", "gmt", "random-mask", "hft"),
    *("mft", "random-mask-weights", "l1-mask", "speft", "lora", "pissa"),
)
"""Those of ours that `train` takes; the others exist in studies only."""
REFERENCES = ("base", "ft", "sft", "dpo")
"""What others are compared with: no mask, no adapter."""
CLASSIFICATION, REGRESSION = "classification", "regression"
LABELED = (CLASSIFICATION, REGRESSION)
"""Objectives that learn the labels of sentences."""
OBJECTIVES = ("sft", "dpo", *LABELED)
_OTHER_LOOKS = ("#56B4E9", "#882255", "#44AA99", "#999933", "#AA4499", "#332288")
"""Colors of packages' methods that name none, by turns."""


def package_methods() -> Iterator[tuple[str, MethodFacts]]:
    """The training methods that installed packages add.

    Returns:
        Each method's name and facts, sorted by name.

    Raises:
        DeltaLensError: one cannot be loaded, or two packages have one of the same name.
    """
    for name in sorted(plugins("method", METHODS)):
        facts = facts_of(name)
        assert facts is not None
        yield name, facts


def method_name(label: str) -> str:
    """The method that a label in records names.

    Args:
        label: `gmt`, or `gmt:scope=global` where a study has several variants of a method.

    Returns:
        The method's name: `gmt`.
    """
    return label.partition(":")[0]


def facts_of(name: str) -> MethodFacts | None:
    """What is known of a method.

    Args:
        name: in commands and records; or the label of a variant (`method_name`).

    Returns:
        The facts of a method of ours or of an installed package; None of any other.

    Raises:
        DeltaLensError: a package's cannot be loaded, or is no method.
    """
    name = method_name(name)
    if name in METHODS:
        return METHODS[name]
    plugin = find("method", name, METHODS)
    if plugin is None:
        return None
    facts = getattr(plugin.load(), "facts", None)
    if not isinstance(facts, MethodFacts):
        raise DeltaLensError(
            f"{plugin}: {plugin.value} has no `facts`, a deltalens.catalog.methods.MethodFacts"
        )
    return facts


def look_of(name: str, on_base: bool = False) -> Look | None:
    """How a method is called and drawn.

    Args:
        name: of the method; variants of one have the same look (`deltalens.catalog.looks` tells
            them apart).
        on_base: where a base is trained (GMT's figures), not a fine-tune (MFT's).

    Returns:
        Its look, in the other setting if it has none in this one; of a package's method that has
        none, its name with a color. None of an unknown method.
    """
    facts = facts_of(name)
    if facts is None:
        return None
    first, second = (facts.on_base, facts.look) if on_base else (facts.look, facts.on_base)
    return first or second or Look(name, _OTHER_LOOKS[sum(name.encode()) % len(_OTHER_LOOKS)], "p")


def row_in_table3(method: str) -> str:
    """The row of GMT's Table 3 for a method.

    Args:
        method: its name in records.

    Returns:
        The row's name; the method's own where the table has no such row.
    """
    facts = facts_of(method)
    return (facts and (facts.in_table3 or facts.printed)) or method


def has_ratio(method: str) -> bool:
    """Whether a method has a mask ratio.

    Args:
        method: its name in records.

    Returns:
        True also of an unknown method.
    """
    facts = facts_of(method)
    return facts is None or facts.ratio
