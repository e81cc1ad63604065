"""Slow twins of what a probe computes: sorts, sets and plain Python numbers."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Mask = set[tuple[str, int]]


def magnitudes(tensor: Tensor) -> list[float]:
    """|x| of every entry, exactly, in flat order."""
    return [abs(x) for x in tensor.detach().double().reshape(-1).tolist()]


def threshold(unit: Mapping[str, Tensor], ratio: float) -> float:
    """The k-th largest magnitude of a unit, k = n - round(ratio * n), at least 1 (GMT, Eq. 3)."""
    ranked = sorted((x for tensor in unit.values() for x in magnitudes(tensor)), reverse=True)
    k = max(1, len(ranked) - round(ratio * len(ranked)))
    return ranked[k - 1]


def mask(unit: Mapping[str, Tensor], ratio: float) -> Mask:
    """The entries whose magnitude reaches the threshold."""
    least = threshold(unit, ratio)
    return {
        (name, place)
        for name, tensor in unit.items()
        for place, size in enumerate(magnitudes(tensor))
        if size >= least
    }


def jaccard(one: Mask, other: Mask) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def containment(one: Mask, other: Mask) -> float:
    return len(one & other) / len(one) if one else 1.0


def chance(one: Mask, other: Mask, entries: int) -> float:
    both = len(one) * len(other) / entries
    return both / (len(one) + len(other) - both)


def octaves(tensor: Tensor) -> dict[tuple[float, float], int]:
    """(low, high) -> count: four bins of equal width an octave, of normal finite numbers."""
    found: dict[tuple[float, float], int] = {}
    tiny = torch.finfo(tensor.dtype).tiny
    for size in magnitudes(tensor):
        if not tiny <= size < math.inf:
            continue
        octave = 2.0 ** (math.frexp(size)[1] - 1)
        quarter = int((size / octave - 1) * 4)
        key = (octave * (1 + quarter / 4), octave * (1 + (quarter + 1) / 4))
        found[key] = found.get(key, 0) + 1
    return found


def counted_apart(tensor: Tensor) -> dict[str, int]:
    sizes = magnitudes(tensor)
    tiny = torch.finfo(tensor.dtype).tiny
    return {
        "zeros": sum(size == 0 for size in sizes),
        "subnormals": sum(0 < size < tiny for size in sizes),
        "infinities": sum(math.isinf(size) for size in sizes),
        "nans": sum(math.isnan(size) for size in sizes),
    }


def norm(tensor: Tensor) -> float:
    return math.sqrt(math.fsum(x * x for x in magnitudes(tensor)))


def mean(tensor: Tensor) -> float:
    sizes = magnitudes(tensor)
    return math.fsum(sizes) / len(sizes)


def quantile(tensor: Tensor, fraction: float) -> float:
    """By nearest rank."""
    ranked = sorted(magnitudes(tensor))
    return ranked[round(fraction * (len(ranked) - 1))]


def blocks(names: Sequence[str], scope: str) -> dict[str, str]:
    """Name -> the unit it is ranked in."""
    if scope == "tensor":
        return {name: name for name in names}
    if scope == "global":
        return dict.fromkeys(names, "all")
    found = {}
    for name in names:
        parts = name.split(".")
        first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        found[name] = ".".join(parts[: first + 1]) if first is not None else name
    return found
