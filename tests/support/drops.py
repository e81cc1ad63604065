"""Pairs of checkpoints that hypothesis draws, and what a drop of them has to write."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import deltalens
from deltalens.errors import DeltaLensError
from tests.support.cuts import Cut, cut, torch_threads
from tests.support.oracles import order as oracle
from tests.support.oracles.order import FORMATS, STRATEGIES, Entry, Scope
from tests.support.oracles.pairs import (
    KINDS,
    as_bits,
    make,
    read_checkpoint,
    same_bits,
    write_checkpoint,
)

SINGLES = [torch.float16, torch.bfloat16, torch.float32]
NAMES = [
    *("model.layers.0.q.weight", "model.layers.0.k.weight", "model.layers.1.q.weight"),
    *("model.layers.10.q.weight", "model.norm.weight", "model.head.0.bias", "score.weight"),
]


@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def small(chunk: int, threads: int = 1) -> Iterator[None]:
    """Chunks, parts and pieces of a few entries."""
    sizes = Cut(chunk=chunk, part=3 * chunk, hashed=5, sigmas=0.1)
    with cut(sizes), torch_threads(threads):
        yield


@dataclass
class Pair:
    """A fine-tune and its base, of the same names and shapes."""

    ft: dict[str, Tensor]
    base: dict[str, Tensor]
    where: dict[str, list[list[str]] | None] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, list[int]]:
        return {
            name: oracle.delta_magnitudes(tensor, self.base[name])
            for name, tensor in self.ft.items()
        }

    @property
    def differs(self) -> bool:
        return any(any(sizes) for sizes in self.sizes.values())

    @property
    def overflows(self) -> bool:
        return any(s >= oracle.FP32.infinity for sizes in self.sizes.values() for s in sizes)

    def write(self, place: Path) -> tuple[Path, Path]:
        ft = write_checkpoint(place / "ft", self.ft, self.where.get("ft"))
        return ft, write_checkpoint(place / "base", self.base, self.where.get("base"))


def mixture(ft: Mapping[str, Tensor], base: Mapping[str, Tensor], put: set[Entry]) -> dict:
    """The checkpoint with these entries put back, by loops over the bits."""
    found = {}
    for name, tensor in ft.items():
        bits = as_bits(tensor).clone()
        form = FORMATS[tensor.dtype]
        if name in base:
            source = FORMATS[base[name].dtype]
            for at, raw in enumerate(oracle.raw_bits(base[name])):
                if (name, at) in put:
                    cast = oracle.convert(raw, source, form)
                    bits[at] = cast - (1 << form.bits) if cast >> (form.bits - 1) else cast
        found[name] = bits.view(tensor.dtype).view(tensor.shape)
    return found


def same_checkpoint(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[n], other[n]) for n in one)


def dealt(names: Sequence[str], count: int, rotate: int) -> list[list[str]] | None:
    """Names dealt to a number of shards; one file for none."""
    if count == 0:
        return None
    hands = [list(names[(at + rotate) % count :: count]) for at in range(count)]
    return [hand for hand in hands if hand]


@st.composite
def pairs(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = SINGLES, most: int = 40) -> Pair:
    """Tensors of every nature; the base is another of the kind, or near the fine-tune."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    ft, base = {}, {}
    mixed = draw(st.booleans())
    first = draw(st.sampled_from(dtypes)), draw(st.sampled_from(dtypes))
    for name in names:
        one, other = first
        if mixed:
            one, other = draw(st.sampled_from(dtypes)), draw(st.sampled_from(dtypes))
        n, seed = draw(st.integers(0, most)), draw(st.integers(0, 1 << 16))
        kinds = [kind for kind in KINDS if kind != "any" or one == other]
        kind = draw(st.sampled_from(kinds))
        ft[name] = make(kind, n, one, seed)
        if draw(st.booleans()):
            base[name] = make(draw(st.sampled_from(kinds)), n, other, seed + 1)
        else:  # few entries changed: the rest tie at 0
            near = torch.where(make("sparse", n, torch.float32, seed) == 0, 1.0, 1.125)
            base[name] = (ft[name].double() * near).to(other)
        if base[name].double().abs().gt(torch.finfo(one).max).any():
            base[name] = ft[name].to(other)
        shape = (2, n // 2) if n % 2 == 0 and draw(st.booleans()) else (n,)
        ft[name], base[name] = ft[name].view(shape), base[name].view(shape)
    where = {
        side: dealt(names, draw(st.integers(0, 3)), draw(st.integers(0, 2)))
        for side in ("ft", "base")
    }
    return Pair(ft, base, where)


decimals = st.one_of(
    st.sampled_from(["0", "1", "0.5"]), st.integers(0, 100).map(lambda n: f"{n / 100:.2f}")
)
changed = pytest.mark.parametrize("changed_only", [False, True], ids=["all", "changed"])


def check_drop(
    pair: Pair, rates: Sequence[str], scope: Scope, seed: int, changed_only: bool
) -> None:
    sizes = pair.sizes
    with folder() as place:
        ft, base = pair.write(place)
        for at, (strategy, rate) in enumerate((s, r) for s in STRATEGIES for r in rates):
            out = place / f"out{at}"
            spec: dict[str, Any] = {"strategy": strategy, "rate": rate, "scope": scope}
            spec |= {"seed": seed, "changed_only": changed_only}
            if pair.overflows or not pair.differs:
                message = "overflows" if pair.overflows else "no delta"
                with pytest.raises(DeltaLensError, match=message):
                    deltalens.drop(ft, base, out, **spec)
                assert not out.exists()
                continue
            result = deltalens.drop(ft, base, out, **spec)
            put = oracle.select_in_scope(
                sizes, scope, strategy, rate, seed, changed_only=changed_only
            )
            wanted = mixture(pair.ft, pair.base, put)
            assert same_checkpoint(read_checkpoint(out), wanted), spec
            assert result.put_back == len(put)
            assert result.entries == sum(map(len, sizes.values()))
            if result.unchanged is not None:
                assert result.unchanged == sum(s.count(0) for s in sizes.values())


def ordinary(dtype: torch.dtype = torch.bfloat16, n: int = 200) -> Pair:
    names = NAMES[:5]
    ft = {name: make("grid", n, dtype, at) for at, name in enumerate(names)}
    ft[names[1]] = make("sparse", n, dtype, 1)
    base = {name: make("grid", n, dtype, at + 40) for at, name in enumerate(names)}
    return Pair(ft, base, {"ft": dealt(names, 2, 0), "base": dealt(names, 2, 0)})


def dropped(
    place: Path,
    ft: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    *,
    ties: bool | None = None,
    **spec: Any,
) -> tuple[dict[str, Tensor], Any]:
    config = {} if ties is None else {"tie_word_embeddings": ties}
    ft_path = write_checkpoint(place / "ft", ft, config=config)
    base_path = write_checkpoint(place / "base", base, config=config)
    result = deltalens.drop(ft_path, base_path, place / "out", **spec)
    return read_checkpoint(place / "out"), result
