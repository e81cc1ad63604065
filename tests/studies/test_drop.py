"""`drop` writes bitwise the base where the oracle says so, bitwise the fine-tune elsewhere.

Pairs are written, and results read back, by the safetensors library.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deltalens
from deltalens.errors import DeltaLensError
from tests.support.cuts import Cut, cut, torch_threads
from tests.support.oracles import order as oracle
from tests.support.oracles.order import FORMATS, SCOPES, STRATEGIES, Entry, Scope, Strategy
from tests.support.oracles.pairs import (
    KINDS,
    as_bits,
    make,
    read_checkpoint,
    same_bits,
    write_checkpoint,
)
from tests.support.profile import repeatable

pytestmark = [pytest.mark.property, pytest.mark.oracle]

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


@changed
@pytest.mark.parametrize("scope", SCOPES)
@repeatable(7)
@given(pair=pairs(), rate=decimals, seed=st.integers(0, 2), chunk=st.integers(5, 30))
def test_drop_is_the_oracles(
    scope: Scope, changed_only: bool, pair: Pair, rate: str, seed: int, chunk: int
) -> None:
    with small(chunk):
        check_drop(pair, [rate], scope, seed, changed_only)


@pytest.mark.slow
@changed
@pytest.mark.parametrize("scope", SCOPES)
@repeatable(30)
@given(pair=pairs(most=150), rate=decimals, seed=st.integers(), chunk=st.integers(5, 300))
def test_drop_is_the_oracles_for_many_more_pairs(
    scope: Scope, changed_only: bool, pair: Pair, rate: str, seed: int, chunk: int
) -> None:
    with small(chunk, threads=2):
        check_drop(pair, [rate], scope, seed, changed_only)


@repeatable(6)
@given(pair=pairs([torch.float64], most=25), rate=decimals, scope=st.sampled_from(SCOPES))
def test_pairs_in_fp64(pair: Pair, rate: str, scope: Scope) -> None:
    check_drop(pair, [rate], scope, 0, False)


@pytest.mark.parametrize("ft_dtype", SINGLES)
@pytest.mark.parametrize("base_dtype", [*SINGLES, torch.float64])
def test_every_pair_of_dtypes(ft_dtype: torch.dtype, base_dtype: torch.dtype) -> None:
    names = ("model.layers.0.w", "model.layers.1.w", "head")
    ft = {name: make("normal", 30, ft_dtype, at) for at, name in enumerate(names)}
    base = {name: (t.double() * 1.0625 + 0.001).to(base_dtype) for name, t in ft.items()}
    check_drop(Pair(ft, base), ["0.3", "1"], "layer", 0, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_delta_is_computed_in_fp32(dtype: torch.dtype) -> None:
    """Rounded to the pair's own dtype most of these deltas would tie, and be ordered by hash."""
    ft = {"w": 1 + (make("normal", 300, torch.float32, 0) / 8).to(dtype)}
    base = {"w": (make("normal", 300, torch.float32, 1) / 64).to(dtype)}
    check_drop(Pair(ft, base), ["0.1", "0.5"], "tensor", 0, False)


# --- the ends, nesting, and what nothing depends on -----------------------------------------------


def ordinary(dtype: torch.dtype = torch.bfloat16, n: int = 200) -> Pair:
    names = NAMES[:5]
    ft = {name: make("grid", n, dtype, at) for at, name in enumerate(names)}
    ft[names[1]] = make("sparse", n, dtype, 1)
    base = {name: make("grid", n, dtype, at + 40) for at, name in enumerate(names)}
    return Pair(ft, base, {"ft": dealt(names, 2, 0), "base": dealt(names, 2, 0)})


@pytest.mark.parametrize("dtype", SINGLES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rescale", [False, True])
def test_rate_0_is_the_fine_tune_and_rate_1_the_base_byte_for_byte(
    dtype: torch.dtype, strategy: Strategy, rescale: bool, tmp_path: Path
) -> None:
    ft, base = ordinary(dtype).write(tmp_path)
    for rate, side in (("0", ft), ("1", base), (0.0, ft), (1, base)):
        out = tmp_path / f"out-{rate}-{type(rate).__name__}"
        deltalens.drop(ft, base, out, strategy=strategy, rate=rate, rescale=rescale)
        files = sorted(side.glob("*.safetensors"))
        assert len(files) == 2
        for file in files:
            assert (out / file.name).read_bytes() == file.read_bytes()
        assert (out / "config.json").read_bytes() == (ft / "config.json").read_bytes()


def test_signs_of_zeros_are_put_back(tmp_path: Path) -> None:
    ft = {"w": torch.tensor([0.0, -0.0, 0.0, -0.0, 1.0]).repeat(9)}
    base = {"w": torch.tensor([-0.0, 0.0, 0.0, -0.0, 2.0]).repeat(9)}
    pair = Pair(ft, base)
    check_drop(pair, ["0", "0.3", "0.5", "1"], "tensor", 0, False)
    check_drop(pair, ["0.5", "1"], "tensor", 0, True)
    paths = pair.write(tmp_path)
    deltalens.drop(*paths, tmp_path / "out", rate=1)
    assert same_bits(read_checkpoint(tmp_path / "out")["w"], base["w"])


@changed
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_drops_are_nested(
    strategy: Strategy, scope: Scope, changed_only: bool, tmp_path: Path
) -> None:
    pair = ordinary(n=90)
    ft, base = pair.write(tmp_path)
    differs = {name: as_bits(pair.ft[name]) != as_bits(pair.base[name]) for name in pair.ft}
    before = {name: torch.zeros_like(mask) for name, mask in differs.items()}
    for rate in ("0.1", "0.4", "0.41", "0.8", "1"):
        out = tmp_path / rate
        spec: dict[str, Any] = {"strategy": strategy, "rate": rate, "scope": scope}
        deltalens.drop(ft, base, out, changed_only=changed_only, **spec)
        for name, tensor in read_checkpoint(out).items():
            is_base = as_bits(tensor) == as_bits(pair.base[name])
            assert torch.equal(
                is_base | (as_bits(tensor) == as_bits(pair.ft[name])), is_base | True
            )
            now = is_base & differs[name]
            assert not (before[name] & ~now).any()
            before[name] = now


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_sharding_chunks_and_threads_change_no_byte(
    strategy: Strategy, scope: Scope, tmp_path: Path
) -> None:
    pair = ordinary(n=150)
    names = list(pair.ft)
    spec: dict[str, Any] = {"strategy": strategy, "scope": scope, "rate": "0.37", "seed": 4}
    results = []
    layouts = [(0, 0, 0), (1, 3, 2), (3, 5, 0)]
    for at, (rotate, of_ft, of_base) in enumerate(layouts):
        shuffled = names[rotate:] + names[:rotate]
        pair.where = {
            "ft": dealt(shuffled, of_ft, rotate),
            "base": dealt(shuffled[::-1], of_base, rotate),
        }
        place = tmp_path / str(at)
        ft, base = pair.write(place)
        deltalens.drop(ft, base, place / "out", **spec)
        results.append(read_checkpoint(place / "out"))
        for chunk, threads in ((1 << 18, 2), (31, 1), (64, 3)):
            with small(chunk, threads=threads):
                out = place / f"out{chunk}-{threads}"
                deltalens.drop(ft, base, out, **spec)
                results.append(read_checkpoint(out))
    assert all(same_checkpoint(results[0], other) for other in results[1:])
    assert not same_checkpoint(results[0], pair.ft)


def test_seeds_change_what_random_takes(tmp_path: Path) -> None:
    ft, base = ordinary().write(tmp_path)
    written = []
    for seed in (0, 1):
        out = tmp_path / f"out{seed}"
        deltalens.drop(ft, base, out, strategy="random", rate="0.5", seed=seed)
        written.append(read_checkpoint(out))
    assert not same_checkpoint(*written)


# --- rescale --------------------------------------------------------------------------------------


def rescaled(ft: Tensor, base: Tensor, rate: str) -> list[set[int]]:
    """For each kept entry the bits of base + delta / (1 - rate), rounded once.

    The value is computed in fp64, so it may be off by a few of its last bits before it is rounded:
    where that matters, both neighbors are right.
    """
    form, allowed = FORMATS[ft.dtype], []
    for one, other in zip(oracle.raw_bits(ft), oracle.raw_bits(base), strict=True):
        w = oracle.number(other, FORMATS[base.dtype])
        delta = (oracle.number(one, form) - w) / (1 - Fraction(rate))
        slack = (abs(w) + abs(delta)) / 2**49
        allowed.append({oracle.nearest(w + delta + e, form) for e in (-slack, 0, slack)})
    return allowed


def check_rescale(pair: Pair, rate: str, strategy: Strategy) -> None:
    with folder() as place:
        ft, base = pair.write(place)
        deltalens.drop(ft, base, place / "out", strategy=strategy, rate=rate, rescale=True)
        written = read_checkpoint(place / "out")
    for name, tensor in written.items():
        put = oracle.select({name: pair.sizes[name]}, strategy, rate)
        plain = mixture({name: pair.ft[name]}, pair.base, put)[name]
        allowed = rescaled(pair.ft[name], pair.base[name], rate)
        zero = 1 << (FORMATS[tensor.dtype].bits - 1)
        bits = zip(oracle.raw_bits(tensor), oracle.raw_bits(plain), allowed, strict=True)
        for at, (found, dropped, kept) in enumerate(bits):
            if (name, at) in put:
                assert found == dropped
            else:
                assert found in kept or (found == zero and 0 in kept), (name, at)


@pytest.mark.parametrize("dtype", SINGLES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@repeatable(6)
@given(
    kinds=st.tuples(*[st.sampled_from(["grid", "normal", "sparse", "near", "subnormal"])] * 2),
    rate=st.sampled_from(["0.5", "0.1", "0.9", "0.75", "0.37"]),
    seed=st.integers(0, 1 << 16),
)
def test_rescale_rounds_once(
    dtype: torch.dtype, strategy: Strategy, kinds: tuple[str, str], rate: str, seed: int
) -> None:
    ft, base = ({"w": make(kind, 60, dtype, seed + at)} for at, kind in enumerate(kinds))
    pair = Pair(ft, base)
    if pair.differs:
        check_rescale(pair, rate, strategy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rescale_rounds_once_beside_the_middle_of_two_numbers(dtype: torch.dtype) -> None:
    """base + 2 (ft - base) = 1 + half a last place + 2^-30: up, not to even via fp32."""
    half = 2.0 ** -(FORMATS[dtype].fraction + 1)
    ft = {"w": torch.full((8,), 0.5, dtype=dtype)}
    base = {"w": torch.full((8,), -(half + 2.0**-30))}
    check_rescale(Pair(ft, base), "0.5", "trivial")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp64_base_is_cast_once(dtype: torch.dtype) -> None:
    half = 2.0 ** -(FORMATS[dtype].fraction + 1)
    ft = {"w": torch.full((8,), 0.5, dtype=dtype)}
    base = {"w": torch.full((8,), 1 + half + 2.0**-30, dtype=torch.float64)}
    check_drop(Pair(ft, base), ["0.5", "1"], "tensor", 0, False)


def test_a_tensor_of_which_nothing_is_put_back_is_rescaled_too() -> None:
    ft = {"w": torch.tensor([1.0]), "v": torch.linspace(1, 2, 10)}
    check_rescale(
        Pair(ft, {name: torch.zeros_like(t) for name, t in ft.items()}), "0.25", "trivial"
    )


# --- which tensors take part ----------------------------------------------------------------------

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def embedding(rows: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return make("grid", rows * 4, dtype, seed).view(rows, 4)


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


def expected(
    ft: Mapping[str, Tensor], base: Mapping[str, Tensor], strategy: Strategy, rate: str
) -> dict[str, Tensor]:
    """What a drop per tensor gives where the base may have fewer rows."""
    put: set[Entry] = set()
    for name, tensor in base.items():
        flat = ft[name].reshape(-1)[: tensor.numel()]
        sizes = oracle.delta_magnitudes(flat, tensor.reshape(-1))
        put |= oracle.select({name: sizes}, strategy, rate)
    return mixture(ft, base, put)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_that_only_the_fine_tune_has_stay(strategy: Strategy, tmp_path: Path) -> None:
    ft = {EMBED: embedding(14, 0), "model.norm.weight": make("normal", 8, torch.bfloat16, 1)}
    base = {EMBED: embedding(11, 2), "model.norm.weight": make("normal", 8, torch.bfloat16, 3)}
    found, result = dropped(tmp_path, ft, base, strategy=strategy, rate="0.6")
    assert same_checkpoint(found, expected(ft, base, strategy, "0.6"))
    assert result.entries == 11 * 4 + 8
    assert same_bits(found[EMBED][11:], ft[EMBED][11:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_output_embedding_tied_in_the_base_only(strategy: Strategy, tmp_path: Path) -> None:
    ft = {EMBED: embedding(9, 0), HEAD: embedding(9, 5)}
    base = {EMBED: embedding(9, 2)}
    found, _ = dropped(tmp_path, ft, base, strategy=strategy, rate="0.4")
    both = {EMBED: base[EMBED], HEAD: base[EMBED]}
    assert same_checkpoint(found, expected(ft, both, strategy, "0.4"))


def test_an_output_embedding_tied_in_the_fine_tune_only(tmp_path: Path) -> None:
    ft, base = {EMBED: embedding(9, 0)}, {EMBED: embedding(9, 2), HEAD: embedding(9, 2)}
    found, result = dropped(tmp_path, ft, base, rate="0.4", ties=True)
    assert same_checkpoint(found, expected(ft, {EMBED: base[EMBED]}, "trivial", "0.4"))
    assert result.entries == 36


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_tied_tensor_stored_twice_counts_once(
    strategy: Strategy, scope: Scope, tmp_path: Path
) -> None:
    shared = embedding(9, 0)
    ft = {EMBED: shared, HEAD: shared.clone(), "z": make("normal", 20, torch.bfloat16, 4)}
    base = {EMBED: embedding(9, 2), "z": make("normal", 20, torch.bfloat16, 5)}
    spec: dict[str, Any] = {"strategy": strategy, "rate": "0.3", "scope": scope}
    found, result = dropped(tmp_path, ft, base, ties=True, **spec)
    sizes = {name: oracle.delta_magnitudes(ft[name], base[name]) for name in base}
    wanted = mixture(ft, base, oracle.select_in_scope(sizes, scope, strategy, "0.3"))
    assert same_checkpoint(found, wanted | {HEAD: wanted[EMBED]})
    assert result.entries == 9 * 4 + 20


def test_a_tied_tensor_stored_twice_with_more_rows(tmp_path: Path) -> None:
    shared = embedding(12, 0)
    ft, base = {EMBED: shared, HEAD: shared.clone()}, {EMBED: embedding(9, 2)}
    found, _ = dropped(tmp_path, ft, base, ties=True, rate="0.5")
    wanted = expected(ft, base, "trivial", "0.5")
    assert same_bits(found[EMBED], wanted[EMBED])
    assert same_bits(found[HEAD], wanted[EMBED])


def test_a_tied_tensor_stored_twice_and_left_out(tmp_path: Path) -> None:
    """Its name under which it counts takes no part: both stay as the fine-tune has them."""
    shared, other = embedding(9, 0), make("normal", 20, torch.bfloat16, 4)
    ft = {EMBED: shared, HEAD: shared.clone(), "z": other}
    base = {EMBED: embedding(9, 2), HEAD: embedding(9, 2), "z": other + 1}
    found, _ = dropped(tmp_path, ft, base, ties=True, rate="0.5", exclude="embed")
    assert same_bits(found[EMBED], shared)
    assert same_bits(found[HEAD], shared)


def test_an_output_embedding_that_only_the_configuration_ties(tmp_path: Path) -> None:
    """Stored beside the input embedding with other values, it is a tensor of its own."""
    ft = {EMBED: embedding(9, 0), HEAD: embedding(9, 7)}
    base = {EMBED: embedding(9, 2), HEAD: embedding(9, 3)}
    found, _ = dropped(tmp_path, ft, base, ties=True, rate="0")
    assert same_checkpoint(found, ft)


def test_include_and_exclude(tmp_path: Path) -> None:
    pair = ordinary()
    ft, base = pair.write(tmp_path)
    cases = [
        ({"include": r"layers\.0\."}, NAMES[:2]),
        ({"exclude": r"layers\.0\."}, NAMES[2:5]),
        ({"include": "layers", "exclude": r"q\.weight$"}, [NAMES[1]]),
    ]
    for at, (spec, names) in enumerate(cases):
        out = tmp_path / f"out{at}"
        result = deltalens.drop(ft, base, out, rate="0.5", scope="global", **spec)
        sizes = {name: pair.sizes[name] for name in names}
        put = oracle.select_in_scope(sizes, "global", "trivial", "0.5")
        assert same_checkpoint(read_checkpoint(out), mixture(pair.ft, pair.base, put))
        assert result.put_back == len(put) == 100 * len(names)


def test_integers_and_buffers_stay(tmp_path: Path) -> None:
    ft = {
        "w": make("normal", 30, torch.float32, 0),
        "ids": torch.arange(7),
        "h.0.attn.bias": torch.ones(4),
        "flags": torch.tensor([True, False]),
    }
    base = {
        "w": make("normal", 30, torch.float32, 1),
        "ids": torch.arange(7) + 1,
        "h.0.attn.bias": torch.zeros(4),
        "flags": torch.tensor([False, False]),
    }
    found, result = dropped(tmp_path, ft, base, rate="1")
    assert found.keys() == ft.keys()
    assert same_bits(found["w"], base["w"])
    assert all(torch.equal(found[name], ft[name]) for name in ft if name != "w")
    assert result.entries == 30


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["ft", "base", "both"])
def test_what_is_not_finite_is_reported_by_name(
    strategy: Strategy, value: float, side: str, tmp_path: Path
) -> None:
    pair = ordinary()
    for where in ("ft", "base"):
        if side in (where, "both"):
            getattr(pair, where)[NAMES[2]][17] = value
    ft, base = pair.write(tmp_path)
    with small(40), pytest.raises(DeltaLensError, match=NAMES[2]) as caught:
        deltalens.drop(ft, base, tmp_path / "out", strategy=strategy)
    assert "17" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "ft"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_identical_models_are_refused(strategy: Strategy, tmp_path: Path) -> None:
    one = {"w": make("normal", 30, torch.float32, 0), "v": torch.tensor([0.0, -0.0])}
    other = {"w": one["w"].clone(), "v": torch.tensor([-0.0, -0.0])}
    with pytest.raises(DeltaLensError, match="no delta"):
        dropped(tmp_path, one, other, strategy=strategy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "spec",
    [{"rate": "1.1"}, {"rate": "x"}, {"strategy": "smallest"}, {"scope": "row"}, {"include": "("}],
)
def test_bad_settings_are_refused_before_any_work(spec: dict[str, str], tmp_path: Path) -> None:
    ft, base = ordinary().write(tmp_path)
    with pytest.raises(DeltaLensError):
        deltalens.drop(ft, base, tmp_path / "out", **spec)
    assert not (tmp_path / "out").exists()


def test_the_record_says_what_was_asked(tmp_path: Path) -> None:
    ft, base = ordinary().write(tmp_path)
    deltalens.drop(ft, base, tmp_path / "out", strategy="random", rate=0.70, seed=3)
    record = json.loads((tmp_path / "out" / "deltalens.json").read_text())["drop"]
    assert (record["strategy"], record["rate"], record["seed"]) == ("random", "0.7", 3)
