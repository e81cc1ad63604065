"""How much each layer loses: one ratio for all, or by kind, projection and block."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from deltalens import DeltaLensError, MaskTuning, apply_masks
from deltalens.io.mask_file import read_masks
from deltalens.methods.mask_layers import choose_layers
from deltalens.methods.mask_ratios import ratios_of
from deltalens.methods.weight_masks import WeightMasks, l1_weight_mask, random_weight_mask
from deltalens.training.methods.weights import Mft
from deltalens.training.spec import TrainingSpec
from tests.support.mft_models import FAMILIES, llama
from tests.support.specs import training_spec


def short(found: dict[str, Fraction]) -> dict[str, str]:
    """`1.q` -> its ratio."""
    return {
        f"{name.split('.')[2]}.{name.rpartition('.')[2].removesuffix('_proj')}": str(float(ratio))
        for name, ratio in found.items()
    }


NAMES = ("q", "k", "v", "o", "gate", "up", "down")


def every(**more: str) -> dict[str, str]:
    """What is said of some layers, 0.1 of all others."""
    names = [f"{block}.{name}" for block in range(4) for name in NAMES]
    return {name: more.get(name, "0.1") for name in names}


CASES: dict[str, tuple[Any, dict[str, str]]] = {
    "one for all": ("0.1", every()),
    "a projection": ({"": 0.1, "q": 0.2}, every(**{f"{b}.q": "0.2" for b in range(4)})),
    "by its whole name": ({"": 0.1, "q_proj": 0.2}, every(**{f"{b}.q": "0.2" for b in range(4)})),
    "a block": (
        {"": 0.1, 2: 0.3},
        every(**{f"2.{n}": "0.3" for n in NAMES}),
    ),
    "blocks and a kind in them": (
        {"": 0.1, "1-2": 0.3, "1-2.mlp": 0.4},
        every(
            **{f"{b}.{n}": "0.3" for b in (1, 2) for n in "qkvo"},
            **{f"{b}.{n}": "0.4" for b in (1, 2) for n in ("gate", "up", "down")},
        ),
    ),
    "a projection before its kind": (
        {"attention": 0.1, "mlp": 0.2, "down": 0.4},
        every(
            **{f"{b}.{n}": "0.2" for b in range(4) for n in ("gate", "up")},
            **{f"{b}.down": "0.4" for b in range(4)},
        ),
    ),
    "both before either": (
        {"": 0.1, "q": 0.2, "3": 0.3, "3.q": 0.4},
        every(
            **{f"{b}.q": "0.2" for b in range(3)},
            **{f"3.{n}": "0.3" for n in ["k", "v", "o", "gate", "up", "down"]},
            **{"3.q": "0.4"},
        ),
    ),
    "the end of a name": ({"": 0.1, "mlp.up": 0.2}, every(**{f"{b}.up": "0.2" for b in range(4)})),
}


@pytest.mark.parametrize(("spec", "wanted"), CASES.values(), ids=CASES)
def test_the_more_precise_one_counts(spec: Any, wanted: dict[str, str]) -> None:
    assert short(ratios_of(spec, choose_layers(llama(layers=4)))) == wanted


def test_names_of_other_families() -> None:
    layers = choose_layers(FAMILIES["gpt2"](True))
    found = ratios_of({"": 0.1, "mlp.c_proj": 0.2, "1.attn.c_proj": 0.3}, layers)
    assert {name: float(ratio) for name, ratio in found.items() if ratio != Fraction(1, 10)} == {
        "transformer.h.0.mlp.c_proj": 0.2,
        "transformer.h.1.mlp.c_proj": 0.2,
        "transformer.h.1.attn.c_proj": 0.3,
    }


BAD: dict[str, tuple[Any, str]] = {
    "no such projection": (
        {"": 0.1, "query": 0.2},
        r"mask_ratio for query: no masked layer(.*)q, ",
    ),
    "no such block": ({"": 0.1, "9": 0.2}, "mask_ratio for 9: no masked layer(.*)blocks 0 to 3"),
    "a range backwards": ({"": 0.1, "3-1": 0.2}, "blocks='3-1'"),
    "two as precise": (
        {"": 0.1, "2": 0.2, "q": 0.3},
        r"2\.self_attn\.q_proj: (.*)equally specific",
    ),
    "ranges that overlap": ({"": 0.1, "0-2": 0.2, "2-3": 0.3}, "equally specific"),
    "not all": ({"q": 0.1, "0": 0.2}, r"(.|\n)*layers\.1\.self_attn\.k_proj: no key applies"),
    "none": ({}, "mask_ratio has no keys"),
    "a ratio of 1": ({"": 0.1, "q": 1}, r"mask_ratio 1 \(q\) is outside"),
}


@pytest.mark.parametrize(("spec", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be(spec: Any, message: str) -> None:
    model = llama(layers=4)
    with pytest.raises(DeltaLensError, match=message):
        MaskTuning(model, mask_ratio=spec)
    assert all(parameter.requires_grad for parameter in model.parameters())


ASKED = {"": "0.1", "q": "0.25", "1.down": "0.05"}


def removed(masks: WeightMasks) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.masks().items()}


def wanted_of(model: nn.Module) -> dict[str, int]:
    return {
        layer.name: round(
            Fraction(
                "0.25"
                if "q_proj" in layer.name
                else "0.05"
                if "1.mlp.down" in layer.name
                else "0.1"
            )
            * layer.entries
        )
        for layer in choose_layers(model)
    }


@pytest.mark.parametrize("how", ["learned", "random", "smallest"])
def test_exactly_so_many_weights_of_each_layer_go(how: str, tmp_path: Path) -> None:
    model = llama()
    if how == "learned":
        masks = MaskTuning(model, mask_ratio=ASKED).weight_masks()
    else:
        make = random_weight_mask if how == "random" else l1_weight_mask
        masks = make(model, mask_ratio=ASKED)
    assert removed(masks) == wanted_of(llama())
    masks.save(tmp_path / "masks.safetensors")
    assert read_masks(tmp_path / "masks.safetensors").about["mask_ratio"] == ASKED
    if how != "learned":
        applied = apply_masks(llama(), tmp_path / "masks.safetensors")
        zeros = {
            layer.name: int((layer.module.weight == 0).sum()) for layer in choose_layers(applied)
        }  # type: ignore[union-attr,operator,arg-type]
        assert zeros == wanted_of(llama())


def typed_ratios(spec: TrainingSpec) -> dict[str, Fraction]:
    assert isinstance(spec.method, Mft)
    return spec.method.ratios


def test_as_text_they_are_read_and_recorded() -> None:
    spec = training_spec("mft", mask_ratio=" q=0.25, 0.10 ,1.down=0.05")
    assert typed_ratios(spec) == {name: Fraction(ratio) for name, ratio in ASKED.items()}
    again = training_spec("mft", mask_ratio="1.down=0.05,0.1,q=.25")
    assert spec.identity() == again.identity()
    assert spec.identity() == training_spec("mft", mask_ratio=ASKED).identity()
    text = spec.settings()["mask_ratio"]
    assert typed_ratios(training_spec("mft", mask_ratio=text)) == typed_ratios(spec)


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("mft", "0.1,0.2", "two for all"),
        ("mft", "q=0.1,q=0.2,0.1", "two for q"),
        ("gmt", "0.1,q=0.2", "gmt takes a single one"),
        ("mft", "q=,0.1", "rate '' is not a number"),
        ("mft", "0.1,q=1", "in \\[0, 1\\)"),
    ],
)
def test_text_that_is_none(method: str, text: str, message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        training_spec(method, mask_ratio=text)
