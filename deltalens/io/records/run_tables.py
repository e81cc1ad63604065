"""The tables of a run, and the columns of each. No torch here."""

from __future__ import annotations

from deltalens.io.records.parquet import Column

__all__ = ["TABLES"]

_STEP, _NAME = Column("int64"), Column("string")
_COUNT, _COUNT_OR_GAP = Column("int64", 0), Column("int64", 0, gaps=True)
_MAGNITUDE = Column("float64", 0)
_SHARE_OR_GAP = Column("float64", 0, 1, gaps=True)


def _overlaps(*references: str) -> dict[str, Column]:
    kinds = ("jaccard", "containment", "chance")
    return {f"{kind}_{reference}": _SHARE_OR_GAP for reference in references for kind in kinds}


TABLES: dict[str, dict[str, Column]] = {
    "histograms": {
        "step": _STEP,
        "tensor": _NAME,
        "low": Column("float64", 5e-324, 1e308, nan=False),
        "high": Column("float64", 5e-324, nan=False),
        "count": _COUNT,
    },
    "tensors": {
        "step": _STEP,
        "tensor": _NAME,
        "entries": _COUNT,
        "norm": _MAGNITUDE,
        "mean": _MAGNITUDE,
        "q50": _MAGNITUDE,
        "q90": _MAGNITUDE,
        "q99": _MAGNITUDE,
        "q999": _MAGNITUDE,
        "zeros": _COUNT,
        "subnormals": _COUNT,
        "infinities": _COUNT,
        "nans": _COUNT,
        "bits_changed": _SHARE_OR_GAP,
        "bf16_changed": _SHARE_OR_GAP,
        "stalled": _SHARE_OR_GAP,
    },
    "masks": {
        "step": _STEP,
        "tensor": _NAME,
        "mask_ratio": Column("float64", 0, 1, nan=False),
        "threshold": _MAGNITUDE,
        "kept": _COUNT_OR_GAP,
        "entries": _COUNT,
        **_overlaps("previous", "first", "reference"),
        "coverage": _SHARE_OR_GAP,
    },
    "learned": {
        "step": _STEP,
        "layer": _NAME,
        "entries": _COUNT,
        "kept": _COUNT,
        **_overlaps("previous", "first"),
        "flipped_previous": _COUNT_OR_GAP,
        "flipped_first": _COUNT_OR_GAP,
        "ever_kept": _SHARE_OR_GAP,
    },
}
"""Table -> column -> what it must contain; `docs/records.md` explains each column."""
