"""Matching the tensors of a fine-tuned checkpoint with those of its base, before any work."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from deltalens.errors import FAULTS_SHOWN, PairingError, fault_list, similar_names
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.collection import collection_paused
from deltalens.io.header import FLOATS, TensorEntry
from deltalens.io.naming import Names
from deltalens.io.pairing import Pairing, TensorPair
from deltalens.io.tying import Tying, may_tie, stored_copies, tying_of
from deltalens.names import (
    NameFilter,
    is_buffer,
    is_in_task_head,
    is_quantization_data,
    may_change_rows,
)

__all__ = ["pair"]

_NEAR = 2_000
"""Names that each of the missing ones is likened to."""
_LEFT_OUT = "left out by include/exclude"
_NAMED = 4
"""Tensors on one side only that a note names."""


def pair(
    ft: str | Path | Checkpoint,
    base: str | Path | Checkpoint,
    include: str | None = None,
    exclude: str | None = None,
    strict: bool = False,
) -> Pairing:
    """Match a fine-tuned checkpoint with its base by stored names; headers are read, and tensors
    that may be copies of each other.

    Every floating-point tensor that both have takes part, embeddings and norms included. Handled:
    tied weights stored on one side only or twice, a `model.`-like prefix on one side, LayerNorms
    called `gamma` and `beta`, names that transformers changes on load, buffers on one side,
    different dtypes, embeddings that the fine-tune enlarged. Integer and quantized tensors stay as
    the fine-tune has them, and so does what is in the fine-tune only: a classifier in place of a
    head, say. Notes name what is on one side only.

    Args:
        ft, base: folders, files, or checkpoints already open.
        include, exclude: regular expressions, searched in the stored names of either; a tensor
            that does not take part stays as the fine-tune has it.
        strict: refuse tensors that are on one side only, unless they are left out.

    Raises:
        CheckpointError: either cannot be read.
        PairingError: they do not fit each other: less than half of the entries pair, or a tensor
            inside has another shape; all mismatches are listed at once.
    """
    ft = ft if isinstance(ft, Checkpoint) else open_checkpoint(ft)
    base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    if ft.path.resolve() == base.path.resolve():
        raise PairingError(f"{ft.path} is given as both models: there is no delta to study")
    chosen = NameFilter(include, exclude)
    with collection_paused():
        matcher = _Matcher(ft, base, chosen)
        in_base = matcher.names.in_base
        if not any(chosen.matches(name, in_base(name)) for name in ft.tensors):
            raise PairingError(chosen.explain_no_match(ft.tensors, f"tensor of {ft.path}"))
        for entry in ft.tensors.values():
            matcher.match(entry)
        return matcher.result(strict)


class _Matcher:
    """Goes through the fine-tune's tensors and sorts each into a pair, a kept one, one that the
    base has nothing for, or a fault."""

    def __init__(self, ft: Checkpoint, base: Checkpoint, chosen: NameFilter) -> None:
        self.ft, self.base, self.chosen = ft, base, chosen
        self.pairs: list[TensorPair] = []
        self.kept: dict[str, str] = {}
        self.notes: list[str] = [*ft.notes, *base.notes]
        self.faults: list[str] = []
        self.shapes = 0
        self.used: set[str] = set()
        self.ft_only: dict[str, TensorEntry] = {}
        self.base_only: dict[str, TensorEntry] = {}
        self.left_out: set[str] = set()
        """Names that include and exclude leave out, of what is on one side only."""
        found = stored_copies(ft)
        self.copies, self.apart = dict(found.equal), found.apart
        self.names = Names(ft.tensors, base.tensors)
        self.quantized = "quantization_config" in ft.config or "quantization_config" in base.config
        if self.names.note:
            self.notes.append(self.names.note)

    def match(self, entry: TensorEntry) -> None:
        """Sort one tensor of the fine-tune."""
        other, tied = self._counterpart(entry)
        if other is not None:
            self.used.add(other.name)
        if not self.chosen.matches(entry.name, other.name if other else entry.name):
            self.kept[entry.name] = _LEFT_OUT
            if other is None and self._counts(entry):
                self.ft_only[entry.name] = entry
                self.left_out.add(entry.name)
        elif entry.dtype not in FLOATS:
            self.kept[entry.name] = f"{entry.dtype} is left as the fine-tune has it"
        elif self.quantized and is_quantization_data(entry.name):
            self.kept[entry.name] = "belongs to a quantized weight"
        elif is_buffer(entry.name):
            self.kept[entry.name] = "a buffer"
        elif entry.name in self.copies:
            first = self.copies[entry.name]
            self.notes.append(f"{entry.name}: tied to {first} and stored twice; counts once")
        elif other is None:
            self.ft_only[entry.name] = entry
        elif other.dtype not in FLOATS:
            self.kept[entry.name] = f"the base has it as {other.dtype}"
        else:
            if tied:
                self.notes.append(f"{entry.name}: tied in the base, compared with {other.name}")
            self._compare(entry, other)
        if entry.name in self.apart:
            self.notes.append(
                f"{entry.name}: the configuration ties it to {self.apart[entry.name]}, but its "
                "values are others: transformers loads both, and both count"
            )

    def _counterpart(self, entry: TensorEntry) -> tuple[TensorEntry | None, bool]:
        """What the base has for a tensor of the fine-tune; whether only because it ties it."""
        other = self.base.tensors.get(self.names.in_base(entry.name))
        if other is not None or entry.dtype not in FLOATS or entry.name in self.copies:
            return other, False
        live = self.ft_tying.live.get(entry.name, self.names.in_base(entry.name))
        if live in self._base_by_live:
            return self.base.tensors[self._base_by_live[live]], False
        for mate in self.base_tying.mates(live):
            if self.base.tensors[mate].dtype in FLOATS:
                return self.base.tensors[mate], True
        return None, False

    def _compare(self, entry: TensorEntry, other: TensorEntry) -> None:
        if entry.shape == other.shape:
            self.pairs.append(TensorPair(entry, other, entry.numel))
        elif _other_rows(entry, other):
            rows = entry.shape[0] - other.shape[0]
            if rows > 0:
                self.notes.append(f"{entry.name}: {rows} rows more than in the base; they stay")
            else:
                other, rest = _cut(other, entry.shape[0])
                self.base_only[rest.name] = rest
            self.pairs.append(TensorPair(entry, other, other.numel))
        else:
            shapes = f"{list(entry.shape)} in the fine-tune and {list(other.shape)} in the base"
            if is_in_task_head(entry.name):
                self.notes.append(f"{entry.name}: {shapes}")
                self.ft_only[entry.name], self.base_only[other.name] = entry, other
            else:
                self.shapes += 1
                self.faults.append(f"{entry.name!r} is {shapes}")

    @functools.cached_property
    def ft_tying(self) -> Tying:
        return tying_of(self.ft, self.base) if may_tie(self.ft.config) else Tying(())

    @functools.cached_property
    def base_tying(self) -> Tying:
        return tying_of(self.base, self.ft) if may_tie(self.base.config) else Tying(())

    @functools.cached_property
    def _base_by_live(self) -> dict[str, str]:
        """Names in a loaded model -> those in the base, where each is another in the fine-tune."""
        matched = {self.names.in_base(name) for name in self.ft.tensors}
        of_ft = Counter(self.ft_tying.live.values())
        of_base = Counter(self.base_tying.live.values())
        return {
            live: name
            for name, live in self.base_tying.live.items()
            if name not in matched and of_ft[live] == of_base[live] == 1
        }

    def _counts(self, entry: TensorEntry) -> bool:
        """Whether a tensor is a weight of its own."""
        return not (
            entry.dtype not in FLOATS
            or (self.quantized and is_quantization_data(entry.name))
            or is_buffer(entry.name)
            or entry.name in self.copies
        )

    def _sort_rest(self) -> None:
        """What the base has beside the fine-tune's tensors."""
        rest = [entry for name, entry in self.base.tensors.items() if name not in self.used]
        copies = stored_copies(self.base).equal if rest else {}
        for entry in rest:
            if not self._counts(entry) or copies.get(entry.name) in self.used:
                if self.chosen.matches(entry.name) and entry.dtype in FLOATS:
                    self.notes.append(f"{entry.name}: in the base only, ignored")
                continue
            self.base_only[entry.name] = entry
            if not self.chosen.matches(entry.name):
                self.left_out.add(entry.name)

    def _check_sides(self, strict: bool) -> None:
        """What is on one side only is a fault if asked to be, or where it is most of it."""
        ft_only = [e for e in self.ft_only.values() if e.name not in self.left_out]
        base_only = [e for e in self.base_only.values() if e.name not in self.left_out]
        beside = sum(entry.numel for entry in (*ft_only, *base_only))
        paired = sum(one.entries for one in self.pairs)
        if not strict and paired >= beside:
            for side, entries in (
                ("fine-tune only, left as it is", ft_only),
                ("base only", base_only),
            ):
                if entries:
                    total = sum(entry.numel for entry in entries)
                    self.notes.append(f"in the {side}: {_named(entries)} ({total:,} entries)")
            self.kept |= dict.fromkeys((e.name for e in ft_only), "in the fine-tune only")
            return
        free = [e.name for e in base_only if e.name not in self.ft.tensors][:_NEAR]
        for place, entry in enumerate(ft_only):
            known = free if place < FAULTS_SHOWN else []
            near = similar_names(entry.name, known, 1, 0.6)
            hint = f" (nearest: {near[0]!r})" if near else ""
            self.faults.append(f"{entry} is not in the base{hint}")
        self.faults += [f"{entry} is in the base only" for entry in base_only]
        if not strict and self.pairs:
            share = 100 * paired / (paired + beside)
            self.faults.insert(0, f"only {share:.0f} % of the entries are in both")

    def result(self, strict: bool) -> Pairing:
        """All of it, or one error with all faults."""
        if not self.pairs and not self.used:
            raise PairingError(
                f"{self.ft.path} and {self.base.path} have no tensor in common: "
                f"{_first(self.ft)} against {_first(self.base)}. Are they the same architecture?"
            )
        self._sort_rest()
        self._check_sides(strict)
        if self.faults:
            raise PairingError(fault_list(self._headline(), self.faults))
        if not self.pairs:
            raise PairingError(
                fault_list("No floating-point tensor is left to compare:", _reasons(self.kept))
            )
        return Pairing(
            self.ft,
            self.base,
            tuple(self.pairs),
            self.kept,
            tuple(self.notes),
            self.copies,
            tuple(self.ft_only.values()),
            tuple(self.base_only.values()),
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


def _other_rows(entry: TensorEntry, other: TensorEntry) -> bool:
    """Whether one is the other with more rows: an embedding that was resized."""
    return (
        may_change_rows(entry.name)
        and 1 <= len(entry.shape) == len(other.shape)
        and entry.shape[1:] == other.shape[1:]
        and min(entry.shape[0], other.shape[0]) > 0
    )


def _cut(entry: TensorEntry, rows: int) -> tuple[TensorEntry, TensorEntry]:
    """The first rows of a stored tensor, and the others."""
    at = entry.begin + (entry.end - entry.begin) // entry.shape[0] * rows
    return (
        entry._replace(shape=(rows, *entry.shape[1:]), end=at),
        entry._replace(shape=(entry.shape[0] - rows, *entry.shape[1:]), begin=at),
    )


def _first(checkpoint: Checkpoint) -> str:
    return ", ".join(repr(name) for name in list(checkpoint.tensors)[:2])


def _named(entries: Collection[TensorEntry]) -> str:
    names = ", ".join(entry.name for entry in itertools.islice(entries, _NAMED))
    return names + (f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else "")


def _reasons(kept: dict[str, str]) -> list[str]:
    return [f"{name}: {why}" for name, why in kept.items()]
