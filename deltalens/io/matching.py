"""Matching the tensors of a fine-tuned checkpoint with those of its base before any work."""

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

_MOST_COMPARED = 2_000
"""Names among which the one most similar to a missing name is searched."""
_EXCLUDED = "excluded by `include` or `exclude`"
_MOST_NAMED = 4
"""How many of the tensors on one side only a note lists by name."""


def pair(
    ft: str | Path | Checkpoint,
    base: str | Path | Checkpoint,
    include: str | None = None,
    exclude: str | None = None,
    strict: bool = False,
) -> Pairing:
    """Match the tensors of a fine-tuned checkpoint with those of its base, by their stored names.

    Only headers are read, and tensors that may be copies of each other. Every floating-point tensor
    that both checkpoints store is paired, including embeddings and norms. The matching handles:

    - tied weights that are stored in one checkpoint only, or twice;
    - a prefix such as `model.` in one checkpoint only;
    - LayerNorm parameters called `gamma` and `beta`, and names that transformers changes on load;
    - buffers that are stored in one checkpoint only, and different dtypes;
    - embeddings that the fine-tune enlarged.

    Integer and quantized tensors stay as the fine-tune has them. So do tensors that only the
    fine-tune has, for instance a classifier in place of the output head; notes name them.

    Args:
        ft, base: folders, files, or open checkpoints.
        include, exclude: regular expressions, searched in the stored names in either checkpoint. A
            tensor is paired if its name matches `include` and does not match `exclude`; any other
            stays as the fine-tune has it.
        strict: refuse tensors that only one checkpoint has, unless they are excluded.

    Returns:
        The pairs, and what was not paired and why.

    Raises:
        CheckpointError: a checkpoint cannot be read.
        PairingError: the checkpoints do not match: less than half of the entries can be paired, or
            a tensor has different shapes. One message lists all mismatches.

    Example:
        >>> pairing = pair("ft", "base", include=r"mlp")
        >>> all("mlp" in tensor.name for tensor in pairing.pairs)
        True
        >>> pairing.entries == sum(tensor.entries for tensor in pairing.pairs)
        True
    """
    ft = ft if isinstance(ft, Checkpoint) else open_checkpoint(ft)
    base = base if isinstance(base, Checkpoint) else open_checkpoint(base)
    if ft.path.resolve() == base.path.resolve():
        raise PairingError(
            f"{ft.path} was passed as both the fine-tune and the base: there is no delta to study"
        )
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
    """Sorts each tensor of the fine-tune: it is paired, kept, without a counterpart, or a fault."""

    def __init__(self, ft: Checkpoint, base: Checkpoint, chosen: NameFilter) -> None:
        self.ft, self.base, self.chosen = ft, base, chosen
        self.pairs: list[TensorPair] = []
        self.kept: dict[str, str] = {}
        self.notes: list[str] = [*ft.notes, *base.notes]
        self.faults: list[str] = []
        self.shape_faults = 0
        self.used: set[str] = set()
        """Names of the base's tensors that are a counterpart."""
        self.ft_only: dict[str, TensorEntry] = {}
        self.base_only: dict[str, TensorEntry] = {}
        self.excluded: set[str] = set()
        """Tensors on one side only that `include` or `exclude` leave out, by name."""
        copies = stored_copies(ft)
        self.copies, self.apart = dict(copies.equal), copies.apart
        self.names = Names(ft.tensors, base.tensors)
        self.quantized = "quantization_config" in ft.config or "quantization_config" in base.config
        if self.names.note:
            self.notes.append(self.names.note)

    def match(self, entry: TensorEntry) -> None:
        """Sort one tensor of the fine-tune."""
        counterpart, tied = self._counterpart(entry)
        if counterpart is not None:
            self.used.add(counterpart.name)
        if not self.chosen.matches(entry.name, counterpart.name if counterpart else entry.name):
            self.kept[entry.name] = _EXCLUDED
            if counterpart is None and self._is_weight(entry):
                self.ft_only[entry.name] = entry
                self.excluded.add(entry.name)
        elif entry.dtype not in FLOATS:
            self.kept[entry.name] = f"{entry.dtype} is left as the fine-tune has it"
        elif self.quantized and is_quantization_data(entry.name):
            self.kept[entry.name] = "belongs to a quantized weight"
        elif is_buffer(entry.name):
            self.kept[entry.name] = "a buffer"
        elif entry.name in self.copies:
            first = self.copies[entry.name]
            self.notes.append(f"{entry.name}: tied to {first} and stored twice; counted once")
        elif counterpart is None:
            self.ft_only[entry.name] = entry
        elif counterpart.dtype not in FLOATS:
            self.kept[entry.name] = f"stored as {counterpart.dtype} in the base"
        else:
            if tied:
                self.notes.append(
                    f"{entry.name}: tied in the base, and compared with {counterpart.name}"
                )
            self._compare(entry, counterpart)
        if entry.name in self.apart:
            self.notes.append(
                f"{entry.name}: the configuration ties it to {self.apart[entry.name]}, but the "
                "stored values differ: transformers loads both, and both are counted"
            )

    def _counterpart(self, entry: TensorEntry) -> tuple[TensorEntry | None, bool]:
        """The base's tensor for one of the fine-tune, and whether only tying leads to it."""
        counterpart = self.base.tensors.get(self.names.in_base(entry.name))
        if counterpart is not None or entry.dtype not in FLOATS or entry.name in self.copies:
            return counterpart, False
        live = self.ft_tying.live.get(entry.name, self.names.in_base(entry.name))
        if live in self._base_by_live:
            return self.base.tensors[self._base_by_live[live]], False
        for mate in self.base_tying.mates(live):
            if self.base.tensors[mate].dtype in FLOATS:
                return self.base.tensors[mate], True
        return None, False

    def _compare(self, entry: TensorEntry, counterpart: TensorEntry) -> None:
        if entry.shape == counterpart.shape:
            self.pairs.append(TensorPair(entry, counterpart, entry.numel))
        elif _differ_in_rows(entry, counterpart):
            rows = entry.shape[0] - counterpart.shape[0]
            if rows > 0:
                self.notes.append(
                    f"{entry.name}: {rows} more rows than in the base; these rows stay as they are"
                )
            else:
                counterpart, rest = _split_rows(counterpart, entry.shape[0])
                self.base_only[rest.name] = rest
            self.pairs.append(TensorPair(entry, counterpart, counterpart.numel))
        else:
            shapes = (
                f"{list(entry.shape)} in the fine-tune and {list(counterpart.shape)} in the base"
            )
            if is_in_task_head(entry.name):
                self.notes.append(f"{entry.name}: {shapes}; not compared")
                self.ft_only[entry.name] = entry
                self.base_only[counterpart.name] = counterpart
            else:
                self.shape_faults += 1
                self.faults.append(f"{entry.name!r} is {shapes}")

    @functools.cached_property
    def ft_tying(self) -> Tying:
        return tying_of(self.ft, self.base) if may_tie(self.ft.config) else Tying(())

    @functools.cached_property
    def base_tying(self) -> Tying:
        return tying_of(self.base, self.ft) if may_tie(self.base.config) else Tying(())

    @functools.cached_property
    def _base_by_live(self) -> dict[str, str]:
        """Name in the loaded model -> stored name in the base, for tensors whose stored names
        differ between the checkpoints."""
        matched = {self.names.in_base(name) for name in self.ft.tensors}
        in_ft = Counter(self.ft_tying.live.values())
        in_base = Counter(self.base_tying.live.values())
        return {
            live: name
            for name, live in self.base_tying.live.items()
            if name not in matched and in_ft[live] == in_base[live] == 1
        }

    def _is_weight(self, entry: TensorEntry) -> bool:
        """Whether a tensor is a weight, and no copy of another."""
        return not (
            entry.dtype not in FLOATS
            or (self.quantized and is_quantization_data(entry.name))
            or is_buffer(entry.name)
            or entry.name in self.copies
        )

    def _sort_rest(self) -> None:
        """Sort the base's tensors that are not the counterpart of one of the fine-tune's."""
        rest = [entry for name, entry in self.base.tensors.items() if name not in self.used]
        copies = stored_copies(self.base).equal if rest else {}
        for entry in rest:
            if not self._is_weight(entry) or copies.get(entry.name) in self.used:
                if self.chosen.matches(entry.name) and entry.dtype in FLOATS:
                    self.notes.append(f"{entry.name}: in the base only; ignored")
                continue
            self.base_only[entry.name] = entry
            if not self.chosen.matches(entry.name):
                self.excluded.add(entry.name)

    def _check_sides(self, strict: bool) -> None:
        """Tensors on one side only are faults if `strict`, or if they outweigh the pairs."""
        ft_only = [e for e in self.ft_only.values() if e.name not in self.excluded]
        base_only = [e for e in self.base_only.values() if e.name not in self.excluded]
        unpaired = sum(entry.numel for entry in (*ft_only, *base_only))
        paired = sum(pair.entries for pair in self.pairs)
        if not strict and paired >= unpaired:
            for side, entries in (
                ("fine-tune only, left as it is", ft_only),
                ("base only", base_only),
            ):
                if entries:
                    total = sum(entry.numel for entry in entries)
                    self.notes.append(f"in the {side}: {_listed(entries)} ({total:,} entries)")
            self.kept |= dict.fromkeys((e.name for e in ft_only), "in the fine-tune only")
            return
        unmatched = [e.name for e in base_only if e.name not in self.ft.tensors][:_MOST_COMPARED]
        for number, entry in enumerate(ft_only):
            candidates = unmatched if number < FAULTS_SHOWN else []
            similar = similar_names(entry.name, candidates, 1, 0.6)
            hint = f" (most similar: {similar[0]!r})" if similar else ""
            self.faults.append(f"{entry} is not in the base{hint}")
        self.faults += [f"{entry} is in the base only" for entry in base_only]
        if not strict and self.pairs:
            share = 100 * paired / (paired + unpaired)
            self.faults.insert(0, f"only {share:.0f} % of the entries are in both")

    def result(self, strict: bool) -> Pairing:
        """The pairing, or one error with all faults."""
        if not self.pairs and not self.used:
            raise PairingError(
                f"{self.ft.path} and {self.base.path} have no tensor in common: one starts with "
                f"{_first_names(self.ft)}, the other with {_first_names(self.base)}. Do they have "
                "the same architecture?"
            )
        self._sort_rest()
        self._check_sides(strict)
        if self.faults:
            raise PairingError(fault_list(self._headline(), self.faults))
        if not self.pairs:
            raise PairingError(
                fault_list("no floating-point tensor is left to compare:", _reasons(self.kept))
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
        no_pairs = (
            " Every shape differs: is this the right base?"
            if not self.pairs and self.shape_faults
            else ""
        )
        return (
            f"{self.ft.path} does not match {self.base.path}.{no_pairs} Use the base that the "
            "fine-tune started from, or leave tensors out with `exclude`:"
        )


def _differ_in_rows(entry: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors differ in their number of rows only: a resized embedding."""
    return (
        may_change_rows(entry.name)
        and 1 <= len(entry.shape) == len(other.shape)
        and entry.shape[1:] == other.shape[1:]
        and min(entry.shape[0], other.shape[0]) > 0
    )


def _split_rows(entry: TensorEntry, rows: int) -> tuple[TensorEntry, TensorEntry]:
    """The first rows of a stored tensor, and the others."""
    boundary = entry.begin + (entry.end - entry.begin) // entry.shape[0] * rows
    return (
        entry._replace(shape=(rows, *entry.shape[1:]), end=boundary),
        entry._replace(shape=(entry.shape[0] - rows, *entry.shape[1:]), begin=boundary),
    )


def _first_names(checkpoint: Checkpoint) -> str:
    return ", ".join(repr(name) for name in list(checkpoint.tensors)[:2])


def _listed(entries: Collection[TensorEntry]) -> str:
    names = ", ".join(entry.name for entry in itertools.islice(entries, _MOST_NAMED))
    more = len(entries) - _MOST_NAMED
    return names + (f" and {more} more" if more > 0 else "")


def _reasons(kept: dict[str, str]) -> list[str]:
    return [f"{name}: {why}" for name, why in kept.items()]
