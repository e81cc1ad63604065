"""The anatomy of a delta: per tensor, per layer, per kind of projection, and overall."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from deltalens.catalog.layers import tensor_rank
from deltalens.catalog.studies import STUDIES
from deltalens.io.matching import pair
from deltalens.io.pairing import Pairing, TensorPair
from deltalens.io.reader import torch_dtype
from deltalens.io.records import Cell, Measurement, StudyFolder, check_study_folder
from deltalens.names import block_of, projection_of
from deltalens.numerics.anatomy import anatomy_of, octave_counts
from deltalens.numerics.kernels import count_true
from deltalens.numerics.scratch import Scratch
from deltalens.numerics.selection import Counts
from deltalens.numerics.workers import workers
from deltalens.studies.deltas import DeltaChunk, DeltaStream, Span
from deltalens.studies.selecting import find_nonfinite, no_delta

__all__ = ["Group", "Inspection", "inspect"]

KIND = "inspect"
LEVELS = ("overall", "kind", "layer", "tensor")
PER_OCTAVE = 4
"""Bins of the histograms per factor of 2 in |delta|."""


@dataclass(frozen=True)
class Group:
    """The anatomy of one tensor's delta, or of several together."""

    level: str
    """overall, kind (of projection), layer, or tensor."""
    name: str
    entries: int
    unchanged: float
    """Share of entries whose delta is exactly 0."""
    relative_norm: float
    """Norm of the delta over the norm of the base's weights."""
    quantiles: dict[float, float]
    """Fraction -> |delta|."""
    tail: float
    """Kurtosis of the delta about zero: 3 if normal, more with heavier tails."""
    energy: dict[float, float]
    """Fraction -> share of the delta's squared norm in its largest entries."""
    vanishing: float
    """Share of the changes that disappear when both models are cast to bf16; NaN where both are
    bf16."""

    def metrics(self) -> dict[str, float]:
        """Name the numbers as the records do.

        Returns:
            Metric -> value.
        """
        return {
            "entries": float(self.entries),
            "unchanged": self.unchanged,
            "relative_norm": self.relative_norm,
            **{f"quantile_{q:g}": value for q, value in self.quantiles.items()},
            "kurtosis": self.tail,
            **{f"energy_top_{top:g}": share for top, share in self.energy.items()},
            "vanishing_in_bf16": self.vanishing,
        }


@dataclass(frozen=True)
class Inspection:
    """The anatomy of a delta."""

    pairing: Pairing
    groups: tuple[Group, ...]
    """By level: the whole model, kinds of projection, layers, tensors."""
    histograms: dict[str, dict[int, int]]
    """Layer -> floor(4 log2|delta|) -> entries."""


@dataclass
class _Tally:
    """The running sums of a group."""

    counts: Counts = field(default_factory=lambda: Counts.empty(torch.float32))
    squares: float = 0.0
    base_squares: float = 0.0
    vanished: int = 0
    casts: int = 0
    """Changed entries that a cast to bf16 could lose."""

    def merge(self, other: _Tally) -> None:
        """Add another group's sums."""
        self.counts.merge(other.counts)
        self.squares += other.squares
        self.base_squares += other.base_squares
        self.vanished += other.vanished
        self.casts += other.casts

    def group(self, level: str, name: str) -> Group:
        """Describe the group."""
        anatomy = anatomy_of(self.counts)
        total = self.counts.total
        norm = math.sqrt(self.squares / self.base_squares) if self.base_squares else math.nan
        return Group(
            level,
            name,
            total,
            self.counts.zeros / total if total else math.nan,
            norm,
            anatomy.quantiles,
            anatomy.tail,
            anatomy.energy,
            self.vanished / self.casts if self.casts else math.nan,
        )


def inspect(
    ft: str | Path,
    base: str | Path,
    out: str | Path | None = None,
    *,
    include: str | None = None,
    exclude: str | None = None,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Inspection:
    """Describe a delta, in one pass over it.

    Args:
        ft, base: checkpoints, as folders or files.
        out: a folder for the records, from which `deltalens plot` draws; None: write none.
        include, exclude: regular expressions over tensor names.
        strict: refuse tensors that only one of the two models has; if False, notes name them.
        progress: called with (entries done, entries in all).

    Returns:
        The anatomy of the delta.

    Raises:
        DeltaLensError: bad input; identical models; a NaN or an infinity, in the tensor that the
            message names.
    """
    pairing = pair(ft, base, include, exclude, strict)
    if out is not None:
        check_study_folder(Path(out), [pairing.ft.path, pairing.base.path], "inspect")
    stream, scratch = DeltaStream(), Scratch()
    groups = _Groups(pairing)
    done = 0
    with workers() as mapper:
        for tensor in pairing.pairs:
            tally = _Tally()
            spans = stream.parts([tensor])
            for part in mapper(functools.partial(_tally, stream=stream, scratch=scratch), spans):
                tally.merge(part)
            if tally.counts.nonfinite:
                raise find_nonfinite([tensor], stream)
            groups.add(tensor, tally)
            done += tensor.entries
            progress(done, pairing.entries)
    if groups.zeros == pairing.entries:
        raise no_delta(pairing)
    inspection = Inspection(pairing, groups.by_level(), groups.layers)
    if out is not None:
        _record(inspection, Path(out))
    return inspection


def _keys(name: str) -> tuple[tuple[str, str], ...]:
    """The groups that contain a tensor: their levels and names."""
    return (
        ("tensor", name),
        ("layer", block_of(name)),
        ("kind", projection_of(name)),
        ("overall", "all"),
    )


class _Groups:
    """The groups of all tensors. Each is described as soon as its last tensor is counted: running
    sums contain a histogram, and every tensor outside the blocks is a layer of its own."""

    def __init__(self, pairing: Pairing) -> None:
        names = sorted((tensor.name for tensor in pairing.pairs), key=tensor_rank)
        keys = [key for name in names for key in _keys(name)]
        self._left = Counter(keys)
        self._sums: dict[tuple[str, str], _Tally] = {}
        # The keys fix the order of the result.
        self._groups: dict[tuple[str, str], Group | None] = dict.fromkeys(keys)
        self.layers: dict[str, dict[int, int]] = {
            name: {} for level, name in keys if level == "layer"
        }
        """Layer -> floor(4 log2|delta|) -> entries."""
        self.zeros = 0
        """Number of entries whose delta is 0."""

    def add(self, tensor: TensorPair, tally: _Tally) -> None:
        """Count a tensor, once."""
        alone = tally.group("tensor", tensor.name)
        self.zeros += tally.counts.zeros
        for level, name in _keys(tensor.name):
            key = level, name
            self._left[key] -= 1
            last, sums = not self._left[key], self._sums.pop(key, None)
            if last and sums is None:
                sums, group = tally, replace(alone, level=level, name=name)
            else:
                sums = sums or _Tally()
                sums.merge(tally)
                if not last:
                    self._sums[key] = sums
                    continue
                group = sums.group(level, name)
            self._groups[key] = group
            if level == "layer":
                self.layers[name] = octave_counts(sums.counts, PER_OCTAVE)

    def by_level(self) -> tuple[Group, ...]:
        """List all groups by level, once every tensor is counted."""
        groups = [group for group in self._groups.values() if group is not None]
        return tuple(group for level in LEVELS for group in groups if group.level == level)


def _tally(span: Span, stream: DeltaStream, scratch: Scratch) -> _Tally:
    tally = _Tally()
    castable = {torch_dtype(span.pair.ft), torch_dtype(span.pair.base)} != {torch.bfloat16}
    for chunk in stream.chunks(span):
        tally.counts.update(chunk.delta, scratch)
        tally.squares += _square_sum(chunk.delta)
        tally.base_squares += _square_sum(chunk.base)
        if castable:
            changed = chunk.delta != 0
            tally.casts += count_true(changed)
            tally.vanished += count_true(changed.logical_and_(_same_in_bf16(chunk)))
    return tally


def _square_sum(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _same_in_bf16(chunk: DeltaChunk) -> Tensor:
    return chunk.ft.bfloat16() == chunk.base.bfloat16()


def _record(inspection: Inspection, out: Path) -> None:
    """Write the records of an inspection; its figure is drawn from them."""
    with StudyFolder.open(out, KIND, {}, STUDIES[KIND].columns, fresh=True) as folder:
        folder.facts = {
            "ft": str(inspection.pairing.ft.path),
            "base": str(inspection.pairing.base.path),
            "per_octave": PER_OCTAVE,
            "histograms": {
                name: sorted([bin_, count] for bin_, count in bins.items())
                for name, bins in inspection.histograms.items()
            },
            "notes": list(inspection.pairing.notes),
        }
        folder.write_manifest()
        cells = [
            Cell(
                {"level": group.level, "name": group.name},
                {
                    name: Measurement(value, n=group.entries)
                    for name, value in group.metrics().items()
                    if name != "entries"
                },
                0.0,
            )
            for group in inspection.groups
        ]
        folder.extend(cells)
        folder.write_table([cell.setting for cell in cells])
