"""The slow twin of the selection core: full keys as tuples, one stable sort, the first k.

Written from DESIGN.md and docs/methods.md, not from the implementation; the hash alone, whose
constants no document gives, repeats deltalens.numerics.hashing in plain Python integers. Nothing
here imports deltalens, and torch only carries the bits in.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

Strategy = Literal["salient", "trivial", "random"]
Scope = Literal["tensor", "layer", "global"]
Entry = tuple[str, int]
"""An entry of a checkpoint: the stored name in the fine-tune and the flat index."""

STRATEGIES: tuple[Strategy, ...] = ("salient", "trivial", "random")
SCOPES: tuple[Scope, ...] = ("tensor", "layer", "global")


# --- bits and numbers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """An IEEE-754 binary format: its width and how many bits its fraction has."""

    bits: int
    fraction: int

    @property
    def exponent(self) -> int:
        return self.bits - 1 - self.fraction

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @property
    def infinity(self) -> int:
        """The magnitude bits of infinity; what is larger is a NaN."""
        return ((1 << self.exponent) - 1) << self.fraction


FORMATS = {
    torch.float16: Format(16, 10),
    torch.bfloat16: Format(16, 7),
    torch.float32: Format(32, 23),
    torch.float64: Format(64, 52),
}
FP32, FP64, BF16 = FORMATS[torch.float32], FORMATS[torch.float64], FORMATS[torch.bfloat16]

_CARRIERS = {
    16: (torch.int16, np.uint16),
    32: (torch.int32, np.uint32),
    64: (torch.int64, np.uint64),
}


def raw_bits(tensor: torch.Tensor) -> list[int]:
    """Each entry's bits as an unsigned integer, in flat order."""
    signed, unsigned = _CARRIERS[FORMATS[tensor.dtype].bits]
    flat = tensor.detach().contiguous().reshape(-1).view(signed).numpy().view(unsigned)
    return [int(bits) for bits in flat]


def magnitude(bits: int, form: Format) -> int:
    """The bits without the sign."""
    return bits & ((1 << (form.bits - 1)) - 1)


def magnitudes(tensor: torch.Tensor) -> list[int]:
    """The magnitude bits of every entry."""
    form = FORMATS[tensor.dtype]
    return [magnitude(bits, form) for bits in raw_bits(tensor)]


def number(bits: int, form: Format) -> Fraction:
    """The exact value of a finite bit pattern."""
    size = magnitude(bits, form)
    assert size < form.infinity
    exponent, fraction = size >> form.fraction, size & ((1 << form.fraction) - 1)
    if exponent:
        fraction |= 1 << form.fraction
    else:
        exponent = 1
    value = Fraction(fraction) * Fraction(2) ** (exponent - form.bias - form.fraction)
    return -value if bits >> (form.bits - 1) else value


def nearest_even(value: Fraction) -> int:
    """The nearest integer; of two equally near ones the even."""
    floor = value.numerator // value.denominator
    rest = 2 * (value - floor)
    if rest > 1 or (rest == 1 and floor % 2):
        return floor + 1
    return floor


def nearest(value: Fraction, form: Format) -> int:
    """The bit pattern nearest to an exact value, ties to even; too large becomes infinity.

    An exact 0 gives +0: the sign of a zero is for the caller to know.
    """
    sign = (1 << (form.bits - 1)) if value < 0 else 0
    value = abs(value)
    if value == 0:
        return 0
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - form.bias)
    units = nearest_even(value / Fraction(2) ** (exponent - form.fraction))
    # A count of units in the last place continues the bit pattern, carries included.
    size = ((exponent + form.bias - 1) << form.fraction) + units
    return sign | min(size, form.infinity)


def convert(bits: int, source: Format, target: Format) -> int:
    """A cast, rounding to nearest even; NaN stays some NaN."""
    if source == target:
        return bits
    sign = (bits >> (source.bits - 1)) << (target.bits - 1)
    size = magnitude(bits, source)
    if size > source.infinity:
        return sign | target.infinity | 1
    if size == source.infinity:
        return sign | target.infinity
    return sign | magnitude(nearest(number(size, source), target), target)


def delta_magnitudes(ft: torch.Tensor, base: torch.Tensor) -> list[int]:
    """The fp32 magnitude bits of ft - base, both finite.

    Computed in fp32, that is: both cast to fp32, subtracted, rounded. Where either is fp64 they are
    subtracted in fp64 first.
    """
    double = torch.float64 in (ft.dtype, base.dtype)
    middle = FP64 if double else FP32
    sizes = []
    for one, other in zip(raw_bits(ft), raw_bits(base), strict=True):
        a = number(convert(one, FORMATS[ft.dtype], middle), middle)
        b = number(convert(other, FORMATS[base.dtype], middle), middle)
        bits = convert(nearest(a - b, middle), middle, FP32)
        sizes.append(magnitude(bits, FP32))
    return sizes


# --- the hash -------------------------------------------------------------------------------------

_WORD = (1 << 64) - 1


def name_key(seed: int, name: str) -> int:
    """A tensor's key: eight bytes of BLAKE2b over seed and name, unsigned."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(key: int, index: int) -> int:
    """The hash of an index as an unsigned 64-bit number."""
    x = (index ^ key) & _WORD
    x = x * 0x9E3779B97F4A7C15 & _WORD
    x ^= x >> 32
    x = x * 0xBF58476D1CE4E5B9 & _WORD
    x ^= x >> 29
    return x * 0x94D049BB133111EB & _WORD


def unmix(key: int, x: int) -> int:
    """The index that hashes to x: every step of `mix` undone."""
    x = x * pow(0x94D049BB133111EB, -1, 1 << 64) & _WORD
    x ^= x >> 29 ^ x >> 58
    x = x * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & _WORD
    x ^= x >> 32
    x = x * pow(0x9E3779B97F4A7C15, -1, 1 << 64) & _WORD
    return x ^ key


def signed(x: int) -> int:
    """The same 64 bits, read as a signed number: hashes are compared so."""
    return x - (1 << 64) if x >> 63 else x


def h64(seed: int, name: str, index: int) -> int:
    """The hash that settles ties."""
    return signed(mix(name_key(seed, name), index))


def hashes(seed: int, name: str, n: int) -> npt.NDArray[np.int64]:
    """`h64` of all indices below n, for tensors too large for loops."""
    x = np.arange(n, dtype=np.uint64) ^ np.uint64(name_key(seed, name))
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0x94D049BB133111EB)
    return x.view(np.int64)


# --- rates ----------------------------------------------------------------------------------------


def count_for(rate: str, n: int) -> int:
    """round(rate * n) of the exact decimal product, half to even."""
    return nearest_even(Fraction(rate) * n)


# --- the order, and a selection -------------------------------------------------------------------


def ordered(
    sizes: Mapping[str, Iterable[int]],
    strategy: Strategy,
    seed: int = 0,
    *,
    changed_only: bool = False,
    hash_of: Callable[[int, str, int], int] = h64,
) -> list[Entry]:
    """Every entry of one unit that may be selected, the first to be selected first.

    `sizes` maps each stored name to its entries' magnitude bits in flat order.
    """
    keys = []
    for name, tensor in sizes.items():
        for index, size in enumerate(tensor):
            if changed_only and size == 0:
                continue
            h = hash_of(seed, name, index)
            if strategy == "random":
                keys.append((h, name, index))
            else:
                keys.append((size, h, name, index))
    keys.sort(reverse=strategy == "salient")
    return [(key[-2], key[-1]) for key in keys]


def select(
    sizes: Mapping[str, Iterable[int]],
    strategy: Strategy,
    rate: str,
    seed: int = 0,
    *,
    changed_only: bool = False,
) -> set[Entry]:
    """The entries of one unit that a rate selects."""
    order = ordered(sizes, strategy, seed, changed_only=changed_only)
    return set(order[: count_for(rate, len(order))])


class LargeUnit:
    """`select` by numpy's sort of the same keys, for units too large for loops."""

    def __init__(self, sizes: Mapping[str, npt.NDArray[np.integer]], seed: int = 0) -> None:
        # Names in order and indices in order: a stable sort of (bits, hash) does the rest.
        self._names = sorted(sizes)
        self._ends = np.cumsum([len(sizes[name]) for name in self._names])
        bits = np.concatenate([np.asarray(sizes[name], dtype=np.int64) for name in self._names])
        h = np.concatenate([hashes(seed, name, len(sizes[name])) for name in self._names])
        self._by_size, self._by_hash = np.lexsort((h, bits)), np.argsort(h, kind="stable")

    def select(self, strategy: Strategy, rate: str) -> dict[str, npt.NDArray[np.bool_]]:
        """The entries that a rate selects, as a mask per tensor."""
        order = self._by_hash if strategy == "random" else self._by_size
        k = count_for(rate, len(order))
        mask = np.zeros(len(order), dtype=bool)
        mask[order[len(order) - k :] if strategy == "salient" else order[:k]] = True
        return dict(zip(self._names, np.split(mask, self._ends[:-1]), strict=True))


def block(name: str) -> str | None:
    """The name up to and including its first integer component; None outside the blocks."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if re.fullmatch("[0-9]+", part):
            return ".".join(parts[: at + 1])
    return None


def units(names: Iterable[str], scope: Scope) -> list[list[str]]:
    """Which tensors are ranked together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if scope == "tensor":
            key = ("tensor", name)
        elif scope == "global":
            key = ("global", "")
        else:
            inside = block(name)
            key = ("tensor", name) if inside is None else ("block", inside)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def select_in_scope(
    sizes: Mapping[str, list[int]],
    scope: Scope,
    strategy: Strategy,
    rate: str,
    seed: int = 0,
    *,
    changed_only: bool = False,
) -> set[Entry]:
    """The entries of a whole checkpoint that a rate selects, unit by unit."""
    chosen: set[Entry] = set()
    for unit in units(sizes, scope):
        part = {name: sizes[name] for name in unit}
        chosen |= select(part, strategy, rate, seed, changed_only=changed_only)
    return chosen
