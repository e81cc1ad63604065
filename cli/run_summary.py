"""What a run's records say, by layer group: the numbers of `deltalens monitor`. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.errors import Lines
from deltalens.figures.gradient_run import GROUPS, group_of
from deltalens.io.records import RunRecord
from deltalens.io.tables import Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RunSummary", "summarize"]

_RATIOS_ACROSS = 3
_FAULTS_SHOWN = 8


@dataclass(frozen=True)
class MaskSummary:
    """A group's masks at one ratio; means over entries, NaN where not logged."""

    mask_ratio: float
    overlap: float
    """Jaccard index with the previous logged step, over the last steps."""
    chance: float
    """What it would be for random masks of the same sizes."""
    coverage: float
    """Share of entries that were ever in the mask."""


@dataclass(frozen=True)
class GroupSummary:
    """A layer group over the last steps; NaN where not logged."""

    group: str
    tensors: int
    entries: int
    share: float
    """Of all entries."""
    median: float
    """Of |g|, zeros, subnormals, NaNs and infinities left out; to a quarter of an octave."""
    norm: float
    """Of the group's gradient as one vector, mean over the steps."""
    zeros: float
    """Share of entries."""
    bits_changed: float
    bf16_changed: float
    stalled: float
    masks: list[MaskSummary]


@dataclass(frozen=True)
class Fault:
    """A tensor with NaNs or infinities in its gradient."""

    tensor: str
    what: str
    first_step: int
    steps: int
    """How many logged steps have any."""


@dataclass(frozen=True)
class RunSummary:
    """A run in numbers."""

    steps: int
    """Logged."""
    first_step: int | None
    last_step: int | None
    averaged: int
    """So many of the last steps are behind each mean: a tenth, one at least."""
    tensors: int
    entries: int
    groups: list[GroupSummary]
    faults: list[Fault]

    def as_json(self) -> dict[str, Any]:
        """As JSON values; numbers may be NaN."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """What stands above and below the tables."""
        if not self.steps:
            yield "no step logged yet"
            return
        yield (
            f"{self.steps:,} steps logged, {self.first_step:,} to {self.last_step:,}; "
            f"{self.tensors:,} tensors, {self.entries:,} entries"
        )
        yield f"means over the last {self.averaged:,} logged"
        for fault in self.faults[:_FAULTS_SHOWN]:
            yield (
                f"{fault.what} in the gradient of {fault.tensor!r}: first at step "
                f"{fault.first_step:,}, at {fault.steps:,} logged steps in all"
            )
        if len(self.faults) > _FAULTS_SHOWN:
            yield f"... and {len(self.faults) - _FAULTS_SHOWN:,} more"

    def tables(self) -> Iterator[Table]:
        """The groups, and their masks."""
        if not self.groups:
            return
        with_updates = any(not math.isnan(one.bits_changed) for one in self.groups)
        yield Table(
            "",
            (
                *("group", "tensors", "entries", "share", "median |g|", "norm", "zeros"),
                *(("bits changed", "in bf16", "stalled") if with_updates else ()),
            ),
            tuple(_group_row(one, with_updates) for one in self.groups),
        )
        masks = self.groups[0].masks
        for start in range(0, len(masks), _RATIOS_ACROSS):
            some = range(start, min(len(masks), start + _RATIOS_ACROSS))
            heads = [
                (Lines("overlap", f"at {masks[n].mask_ratio:g}"), "chance", "coverage")
                for n in some
            ]
            yield Table(
                "overlap with the mask of the previous logged step, by mask ratio" * (not start),
                ("group", *(head for three in heads for head in three)),
                tuple(
                    (one.group, *(cell for n in some for cell in _mask_cells(one.masks[n])))
                    for one in self.groups
                ),
            )


def _group_row(one: GroupSummary, with_updates: bool) -> tuple[str, ...]:
    updates = (_percent(share) for share in (one.bits_changed, one.bf16_changed, one.stalled))
    return (
        one.group,
        f"{one.tensors:,}",
        f"{one.entries:,}",
        _percent(one.share),
        _known(one.median, ".2e"),
        _known(one.norm, ".3g"),
        _percent(one.zeros),
        *(updates if with_updates else ()),
    )


def _mask_cells(one: MaskSummary) -> tuple[str, ...]:
    return _known(one.overlap, ".3f"), _known(one.chance, ".3f"), _percent(one.coverage)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"


def _known(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def summarize(run: RunRecord) -> RunSummary:
    """The numbers of a run: by layer group, and over all of it where there are several."""
    steps = np.unique(run.tensors["step"].to_numpy(dtype=np.int64))
    if not len(steps):
        return RunSummary(0, None, None, 0, 0, 0, [], [])
    averaged = -(-len(steps) // 10)
    names = [str(name) for name in run.tensors["tensor"].unique()]
    present = {group_of(name) for name in names}
    shown = [group for group in GROUPS if group in present]
    members = {group: {name for name in names if group_of(name) == group} for group in shown}
    if shown[1:]:
        members = {"all": set(names), **members}
    sizes = _sizes(run.tensors)
    groups = [
        _summary_of(run, group, some, int(steps[-averaged]), sizes)
        for group, some in members.items()
    ]
    return RunSummary(
        len(steps),
        int(steps[0]),
        int(steps[-1]),
        averaged,
        len(names),
        sum(sizes.values()),
        groups,
        _faults(run.tensors),
    )


def _sizes(tensors: pd.DataFrame) -> dict[str, int]:
    known = tensors.drop_duplicates("tensor")
    return {str(n): int(e) for n, e in zip(known["tensor"], known["entries"], strict=True)}


def _summary_of(
    run: RunRecord, group: str, names: set[str], since: int, sizes: dict[str, int]
) -> GroupSummary:
    last, bins = (
        frame[(frame["step"] >= since) & frame["tensor"].isin(names)]
        for frame in (run.tensors, run.histograms)
    )
    entries = sum(sizes[name] for name in names)
    norms = (last["norm"] ** 2).groupby(last["step"]).sum(skipna=False) ** 0.5
    held = float(last["entries"].sum())
    return GroupSummary(
        group,
        len(names),
        entries,
        entries / sum(sizes.values()),
        _median(bins),
        float(norms.mean(skipna=False)),
        float(last["zeros"].sum()) / held if held else math.nan,
        _over_entries(last, "bits_changed"),
        _over_entries(last, "bf16_changed"),
        _over_entries(last, "stalled"),
        _masks(run.masks[run.masks["tensor"].isin(names)], since, _ratios(run.masks)),
    )


def _ratios(masks: pd.DataFrame) -> list[float]:
    return sorted(float(ratio) for ratio in masks["mask_ratio"].unique())


def _masks(masks: pd.DataFrame, since: int, ratios: list[float]) -> list[MaskSummary]:
    found = []
    for ratio in ratios:
        rows = masks[masks["mask_ratio"] == ratio]
        last = rows[rows["step"] >= since]
        covered = rows[rows["coverage"].notna()].sort_values("step")
        found.append(
            MaskSummary(
                ratio,
                _over_entries(last, "jaccard_previous"),
                _over_entries(last, "chance_previous"),
                _over_entries(covered.drop_duplicates("tensor", keep="last"), "coverage"),
            )
        )
    return found


def _over_entries(rows: pd.DataFrame, column: str) -> float:
    """The mean of a column over entries; NaN without any."""
    known = rows[rows[column].notna()]
    if not known["entries"].sum():
        return math.nan
    return float(np.average(known[column].astype(float), weights=known["entries"].astype(float)))


def _median(bins: pd.DataFrame) -> float:
    """The middle, in octaves, of the bin that half of the entries reach."""
    if bins.empty:
        return math.nan
    counts = bins.groupby(["low", "high"])["count"].sum()
    running = counts.to_numpy().cumsum()
    low, high = counts.index[int(np.searchsorted(running, running[-1] / 2))]
    return math.sqrt(low * high)


def _faults(tensors: pd.DataFrame) -> list[Fault]:
    found = []
    for column, what in (("nans", "NaN"), ("infinities", "infinity")):
        rows = tensors[tensors[column] > 0]
        for name, steps in rows.groupby(rows["tensor"].astype(str))["step"]:
            found.append(Fault(str(name), what, int(steps.min()), int(steps.nunique())))
    return sorted(found, key=lambda fault: (fault.first_step, fault.tensor, fault.what))
