"""Variants of one method in a study's records."""

from __future__ import annotations

import pytest

from deltalens.catalog.variants import Masks, is_sparse, masks_of, printed_row, variant_of


def test_a_label_is_read_as_a_method_with_its_settings() -> None:
    assert variant_of("lora") == ("lora", {})
    label = "speft:metric=taylor-fo:refresh-every=100"
    assert variant_of(label) == ("speft", {"metric": "taylor-fo", "refresh_every": "100"})
    assert [is_sparse(name) for name in ("speft", label, "lora", "speft-2")] == [
        *(True, True, False, False)
    ]


def test_what_a_label_leaves_out_is_in_the_records_or_the_papers_choice() -> None:
    assert masks_of("speft") == Masks("gradient", "global", "", ())
    recorded = {"metric": "snip", "scope": "tensor", "refresh_every": None}
    assert masks_of("speft", recorded) == Masks("snip", "tensor")
    assert masks_of("speft:metric=fisher:sign=+1", recorded) == Masks(
        *("fisher", "tensor", ""), ("sign +1",)
    )
    for static in ("0", "none", ""):
        assert masks_of(f"speft:refresh-every={static}") == Masks()


@pytest.mark.parametrize(
    ("label", "row"),
    [
        ("lora", "LoRA"),
        ("pissa", "PiSSA"),
        ("speft", "Gradient"),
        ("speft:metric=taylor-fo", "Taylor-FO"),
        ("speft:metric=fisher", "Fisher-Info"),
        ("speft:scope=global", "Gradient"),
        ("speft:scope=tensor", ""),
        ("speft:refresh-every=100", ""),
        ("speft:metric=random", ""),
        ("speft:metric=unheard-of", ""),
        ("lora:lora-rank=4", "LoRA"),
        ("speft:metric=snip:like-lora=64", "SNIP"),
    ],
)
def test_the_paper_has_a_row_for_global_static_masks_alone(label: str, row: str) -> None:
    assert printed_row(label) == row
