"""Matching the tensors of a fine-tuned checkpoint with those of its base, before any work."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from deltalens.errors import SHOWN, DeltaLensError, PairingError, several
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.header import FLOATS, TensorEntry
from deltalens.io.tying import Tying, may_tie, stored_copies, tying_of

__all__ = [
    "SCOPES",
    "Pairing",
    "Scope",
    "TensorPair",
    "Unit",
    "block_of",
    "check_scope",
    "pair",
]

Scope = Literal["tensor", "layer", "global"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_BUFFER = re.compile(
    r"(^|\.)(rotary_emb\.(inv|cos|sin).*|(attn|attention|self_attn)\.(masked_)?bias"
    r"|(attn|attention|self_attn)\.rotary_emb\..*|position_ids|token_type_ids"
    r"|num_batches_tracked|running_(mean|var)|final_logits_bias)$"
)
_QUANTISATION = re.compile(
    r"(scales?|scale_inv|weight_scale\w*|absmax|quant_map|quant_state.*|zeros)$"
)
_NEAR = 300
"""Names that a missing one is likened to: difflib would take minutes over thousands."""
_GROWS = re.compile(r"(embed|wte|shared|lm_head|predictions|output_projection|decoder\.bias|score)")


@dataclass(frozen=True)
class TensorPair:
    """One tensor that takes part: as the fine-tune stores it, and where its base lies."""

    ft: TensorEntry
    base: TensorEntry
    entries: int
    """How many are compared and ranked: the flat prefix that both have. All of them, unless the
    fine-tune's embedding was enlarged; the rows beyond stay as the fine-tune has them."""

    @property
    def name(self) -> str:
        """The fine-tune's stored name."""
        return self.ft.name


@dataclass(frozen=True)
class Unit:
    """Tensors that are ranked together."""

    name: str
    pairs: tuple[TensorPair, ...]

    @property
    def entries(self) -> int:
        """How many entries are ranked."""
        return sum(pair.entries for pair in self.pairs)


@dataclass(frozen=True)
class Pairing:
    """What takes part, and what does not and why."""

    ft: Checkpoint
    base: Checkpoint
    pairs: tuple[TensorPair, ...]
    kept: dict[str, str] = field(default_factory=dict)
    """Tensors of the fine-tune that stay as they are: name -> why."""
    notes: tuple[str, ...] = ()
    """What a reader of the result should know: enlarged, tied, ignored, renamed tensors."""
    copies: dict[str, str] = field(default_factory=dict)
    """Tied tensors that the fine-tune stores twice: name -> the name under which it counts."""

    @property
    def entries(self) -> int:
        """How many entries take part."""
        return sum(pair.entries for pair in self.pairs)

    def units(self, scope: Scope) -> tuple[Unit, ...]:
        """The pairs, grouped by what is ranked together.

        `layer` is one transformer block; a tensor outside the blocks is a unit of its own.
        """
        groups: dict[str, list[TensorPair]] = {}
        for one in self.pairs:
            unit = {"tensor": one.name, "layer": block_of(one.name), "global": "all"}[scope]
            groups.setdefault(unit, []).append(one)
        return tuple(Unit(name, tuple(pairs)) for name, pairs in groups.items())


def block_of(name: str) -> str:
    """A tensor's block: its name up to and including the first integer component, or all of it."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: place + 1])
    return name


def pair(
    ft: str | Path | Checkpoint,
    base: str | Path | Checkpoint,
    include: str | None = None,
    exclude: str | None = None,
) -> Pairing:
    """Match a fine-tuned checkpoint with its base by stored names; only headers are read.

    Every floating-point tensor takes part, embeddings and norms included. Handled: tied weights
    stored on one side only, a `model.`-like prefix on one side, buffers on one side, different
    dtypes, embeddings that the fine-tune enlarged. Integer and quantised tensors stay as the
    fine-tune has them.

    Args:
        ft, base: folders, files, or checkpoints already open.
        include, exclude: regular expressions, searched in the fine-tune's stored names; a tensor
            that does not take part stays as the fine-tune has it.

    Raises:
        CheckpointError: either cannot be read.
        PairingError: they do not fit each other; all mismatches are listed at once.
    """
    ft = ft if isinstance(ft, Checkpoint) else open_checkpoint(ft)
    base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    if ft.path.resolve() == base.path.resolve():
        raise PairingError(f"{ft.path} is given as both models: there is no delta to study")
    chosen = _filter(ft, include, exclude)
    matcher = _Matcher(ft, base)
    for name in chosen:
        matcher.match(ft.tensors[name])
    return matcher.result(set(ft.tensors) - set(chosen))


def _filter(ft: Checkpoint, include: str | None, exclude: str | None) -> list[str]:
    patterns = {}
    for option, pattern in (("include", include), ("exclude", exclude)):
        try:
            patterns[option] = re.compile(pattern) if pattern is not None else None
        except re.error as error:
            raise PairingError(
                f"{option}: {pattern!r} is no regular expression: {error}"
            ) from error
    want, refuse = patterns["include"], patterns["exclude"]
    chosen = [
        name
        for name in ft.tensors
        if (want is None or want.search(name)) and not (refuse and refuse.search(name))
    ]
    if not chosen:
        near = difflib.get_close_matches(include or "", ft.tensors, n=3, cutoff=0.1)
        near = near or list(ft.tensors)[:3]
        raise PairingError(
            f"include {include!r} and exclude {exclude!r} leave no tensor of {ft.path}; "
            f"its names look like {', '.join(near)}"
        )
    return chosen


class _Matcher:
    """Goes through the fine-tune's tensors and sorts each into a pair, a kept one, or a fault."""

    def __init__(self, ft: Checkpoint, base: Checkpoint) -> None:
        self.ft, self.base = ft, base
        self.pairs: list[TensorPair] = []
        self.kept: dict[str, str] = {}
        self.notes: list[str] = []
        self.faults: list[str] = []
        self.shapes = 0
        self.used: set[str] = set()
        found = stored_copies(ft)
        self.copies, self.apart = dict(found.equal), found.apart
        self.prefix = _Prefix(ft.tensors, base.tensors)
        self.quantised = "quantization_config" in ft.config or "quantization_config" in base.config
        if self.prefix.note:
            self.notes.append(self.prefix.note)

    def match(self, entry: TensorEntry) -> None:
        """Sort one tensor of the fine-tune."""
        name = self.prefix.in_base(entry.name)
        other = self.base.tensors.get(name)
        if other is None and entry.name not in self.copies and entry.dtype in FLOATS:
            other = self._tied_in_base(name)
            if other is not None:
                self.notes.append(f"{entry.name}: tied in the base, compared with {other.name}")
        if other is not None:
            self.used.add(other.name)
        if entry.dtype not in FLOATS:
            self.kept[entry.name] = f"{entry.dtype} is left as the fine-tune has it"
        elif self.quantised and _QUANTISATION.search(entry.name):
            self.kept[entry.name] = "belongs to a quantised weight"
        elif _BUFFER.search(entry.name):
            self.kept[entry.name] = "a buffer"
        elif entry.name in self.copies:
            first = self.copies[entry.name]
            self.notes.append(f"{entry.name}: tied to {first} and stored twice; counts once")
        elif other is None:
            self.faults.append(f"{entry} is not in the base{self._nearest(name)}")
        elif other.dtype not in FLOATS:
            self.kept[entry.name] = f"the base has it as {other.dtype}"
        else:
            self._compare(entry, other)
        if entry.name in self.apart:
            self.notes.append(
                f"{entry.name}: the configuration ties it to {self.apart[entry.name]}, but its "
                "values are others: transformers loads both, and both count"
            )

    def _compare(self, entry: TensorEntry, other: TensorEntry) -> None:
        if entry.shape == other.shape:
            self.pairs.append(TensorPair(entry, other, entry.numel))
        elif _enlarged(entry, other):
            rows = entry.shape[0] - other.shape[0]
            self.notes.append(f"{entry.name}: {rows} rows more than in the base; they stay")
            self.pairs.append(TensorPair(entry, other, other.numel))
        else:
            self.shapes += 1
            self.faults.append(
                f"{entry.name!r} is {list(entry.shape)} in the fine-tune and {list(other.shape)} "
                "in the base"
            )

    @functools.cached_property
    def ft_tying(self) -> Tying:
        return tying_of(self.ft, self.base) if may_tie(self.ft.config) else Tying(())

    @functools.cached_property
    def base_tying(self) -> Tying:
        return tying_of(self.base, self.ft) if may_tie(self.base.config) else Tying(())

    def _tied_in_base(self, name: str) -> TensorEntry | None:
        """What the base fills a tensor with that it does not store itself."""
        for mate in self.base_tying.mates(name):
            if self.base.tensors[mate].dtype in FLOATS:
                return self.base.tensors[mate]
        return None

    def _nearest(self, name: str) -> str:
        if len(self.faults) >= SHOWN:
            return ""
        free = (other for other in self.base.tensors if other not in self.ft.tensors)
        near = difflib.get_close_matches(name, itertools.islice(free, _NEAR), n=1, cutoff=0.6)
        return f" (nearest: {near[0]!r})" if near else ""

    def result(self, left_out: set[str]) -> Pairing:
        """All of it, or one error with all faults."""
        out_of_scope = {self.prefix.in_base(name) for name in left_out}
        extra = [e for n, e in self.base.tensors.items() if n not in self.used | out_of_scope]
        if not self.pairs and not self.used:
            raise PairingError(
                f"{self.ft.path} and {self.base.path} have no tensor in common: "
                f"{_first(self.ft)} against {_first(self.base)}. Are they the same architecture?"
            )
        for entry in extra:
            if _BUFFER.search(entry.name) or self.ft_tying.mates(entry.name):
                self.notes.append(f"{entry.name}: in the base only, ignored")
            elif entry.dtype in FLOATS:
                self.faults.append(f"{entry} is in the base only")
        if self.faults:
            raise PairingError(several(self._headline(), self.faults))
        if not self.pairs:
            raise PairingError(
                several("No floating-point tensor is left to compare:", _reasons(self.kept))
            )
        self.kept |= dict.fromkeys(sorted(left_out), "left out by include/exclude")
        return Pairing(
            self.ft, self.base, tuple(self.pairs), self.kept, tuple(self.notes), self.copies
        )

    def _headline(self) -> str:
        every = (
            " Every shape differs: is this the right base?"
            if not self.pairs and self.shapes
            else ""
        )
        return (
            f"{self.ft.path} does not fit {self.base.path}.{every} Leave tensors out with "
            "--exclude (exclude=...), or give the base that the fine-tune started from:"
        )


def _enlarged(entry: TensorEntry, other: TensorEntry) -> bool:
    return (
        _GROWS.search(entry.name) is not None
        and 1 <= len(entry.shape) == len(other.shape)
        and entry.shape[1:] == other.shape[1:]
        and entry.shape[0] > other.shape[0] > 0
    )


def _first(checkpoint: Checkpoint) -> str:
    return ", ".join(repr(name) for name in list(checkpoint.tensors)[:2])


def _reasons(kept: dict[str, str]) -> list[str]:
    return [f"{name}: {why}" for name, why in kept.items()]


class _Prefix:
    """A prefix (`model.`, `transformer.`, ...) that the names have on one side only."""

    def __init__(self, ft: Iterable[str], base: Iterable[str]) -> None:
        ft, base = set(ft), set(base)
        self._matched = ft & base
        self._base = base
        (on_ft, gain_ft), (on_base, gain_base) = _best_prefix(ft, base), _best_prefix(base, ft)
        self._remove = on_ft if gain_ft > 0 and gain_ft >= gain_base else ""
        self._add = on_base if gain_base > gain_ft else ""
        self.note = ""
        if self._remove or self._add:
            where = "the fine-tune" if self._remove else "the base"
            self.note = f"names differ by a prefix: {self._remove or self._add!r} in {where} only"

    def in_base(self, name: str) -> str:
        """What a tensor of the fine-tune is called in the base."""
        if name in self._matched:
            return name
        if self._remove and name.startswith(self._remove):
            return name[len(self._remove) :]
        if self._add and self._add + name in self._base:
            return self._add + name
        return name


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in (1, 2):
        if len(parts) > count:
            yield ".".join(parts[:count]) + "."


def _best_prefix(names: set[str], others: set[str]) -> tuple[str, int]:
    """The prefix without which most names find their partner, and how many do only so."""
    gains = Counter(
        prefix
        for name in names - others
        for prefix in _prefixes(name)
        if name[len(prefix) :] in others
    )
    best = min(gains, key=lambda prefix: (-gains[prefix], len(prefix), prefix), default="")
    return best, gains[best]


def check_scope(scope: str) -> Scope:
    """A scope's name, checked.

    Raises:
        DeltaLensError: it is none of tensor, layer, global.
    """
    for known in SCOPES:
        if scope == known:
            return known
    raise DeltaLensError(f"scope {scope!r}: choose one of {', '.join(SCOPES)}")
