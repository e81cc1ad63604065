"""A probe's run in numbers, by layer group: what `deltalens monitor` shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.catalog.layers import LAYER_GROUPS, layer_group
from deltalens.errors import Lines
from deltalens.io.records import RunRecord
from deltalens.io.tables import Heading, Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HEADINGS", "Fault", "GroupSummary", "MaskSummary", "RunSummary", "summarize_run"]

_RATIOS_PER_TABLE = 3
_OF_GROUPS = (
    Heading("group", "layer group, by the tensors' names; all: together", "name", "tensors/tensor"),
    Heading("tensors", "watched", "count", "tensors/tensor"),
    Heading("entries", "of these tensors", "count", "tensors/entries"),
    Heading("share", "of all entries", "%", "tensors/entries"),
    Heading(
        "median |g|",
        "half of the entries' gradients are smaller; zeros, subnormals and what is not finite are "
        "left out",
        "|g|",
        "histograms/count",
    ),
    Heading(
        "norm", "of the group's gradient as one vector, mean over steps", "|g|", "tensors/norm"
    ),
    Heading("zeros", "gradient exactly 0", "% of entries", "tensors/zeros"),
)
_OF_UPDATES = (
    Heading(
        "bits changed",
        "stored bits differ after the step",
        "% of entries",
        "tensors/bits_changed",
    ),
    Heading(
        "bf16 changed",
        "the same, had they been rounded to bf16 before and after",
        "% of entries",
        "tensors/bf16_changed",
    ),
    Heading(
        "stalled",
        "gradient not 0, and stored bits the same after the step",
        "% of entries",
        "tensors/stalled",
    ),
)
_OF_MASKS = (
    Heading(
        "overlap",
        "Jaccard index of the mask and that of the logged step before; at R: mask ratio R",
        "fraction",
        "masks/jaccard_previous",
    ),
    Heading(
        "chance",
        "the same for random masks of these sizes",
        "fraction",
        "masks/chance_previous",
    ),
    Heading("coverage", "in the mask at least once so far", "% of entries", "masks/coverage"),
)
HEADINGS = (*_OF_GROUPS, *_OF_UPDATES, *_OF_MASKS)
"""Of all tables."""


@dataclass(frozen=True)
class MaskSummary:
    """A group's masks at one mask ratio: means over entries, NaN where nothing was logged."""

    mask_ratio: float
    overlap: float
    """Jaccard index with the mask of the previous logged step, over the last steps."""
    chance: float
    """The same for random masks of the same sizes."""
    coverage: float
    """Share of entries that were in the mask at least once."""


@dataclass(frozen=True)
class GroupSummary:
    """A layer group over the last steps; NaN where nothing was logged."""

    group: str
    tensors: int
    entries: int
    share: float
    """Of all entries."""
    median: float
    """Of |gradient|, without zeros, subnormals, NaNs and infinities; to a quarter of an octave."""
    norm: float
    """L2 norm of the group's gradient, as one vector; mean over the steps."""
    zeros: float
    """Share of entries whose gradient is exactly 0."""
    bits_changed: float
    """Share of entries whose stored bits a step changes."""
    bf16_changed: float
    """The same after rounding to bfloat16."""
    stalled: float
    """Share of entries that have a gradient, and that a step leaves unchanged."""
    masks: list[MaskSummary]
    """One for each mask ratio."""
    energy_top_1: float = math.nan
    """Share of the squared norm in the largest 1 % of entries, by the histogram; mean over the
    steps."""
    energy_top_10: float = math.nan


@dataclass(frozen=True)
class Fault:
    """A tensor with NaNs or infinities in its gradient."""

    tensor: str
    what: str
    """`NaN` or `infinity`."""
    first_step: int
    steps: int
    """Number of logged steps with any."""

    @property
    def sentence(self) -> str:
        """What is wrong, where and since when."""
        steps = f"{self.steps:,} logged steps" if self.steps > 1 else "1 logged step"
        return (
            f"{self.what} in the gradient of {self.tensor!r}: first at step "
            f"{self.first_step:,}, in {steps}"
        )


@dataclass(frozen=True)
class RunSummary:
    """A run in numbers."""

    steps: int
    """Number of logged steps."""
    first_step: int | None
    last_step: int | None
    averaged: int
    """Number of last steps that each mean is taken over: a tenth of all, at least one."""
    tensors: int
    entries: int
    groups: list[GroupSummary]
    """All tensors together first, if there are several groups."""
    faults: list[Fault]

    def as_json(self) -> dict[str, Any]:
        """Give all numbers to a script.

        Returns:
            The fields as JSON values; numbers may be NaN.
        """
        return asdict(self)

    def sentences(self) -> Iterator[str]:
        """Say what was logged; `deltalens.reports.run_said` says what follows from it.

        Returns:
            Sentences, as a person reads them.
        """
        if not self.steps:
            yield "no step logged yet"
            return
        steps = f"{self.steps:,} steps logged, {self.first_step:,} to {self.last_step:,}"
        if self.steps == 1:
            steps = f"1 step logged, step {self.first_step:,}"
        yield f"{steps}; {self.tensors:,} tensors, {self.entries:,} entries"
        last = f"the last {self.averaged:,} logged steps" if self.averaged > 1 else "the last step"
        yield f"the tables show {last}"

    def tables(self) -> Iterator[Table]:
        """Show the layer groups and their masks.

        Returns:
            A table of gradients and updates, and tables of three mask ratios each; none before the
            first step.
        """
        if not self.groups:
            return
        with_updates = any(not math.isnan(group.bits_changed) for group in self.groups)
        headings = (*_OF_GROUPS, *(_OF_UPDATES if with_updates else ()))
        yield Table(
            "gradients by layer group",
            tuple(heading.head for heading in headings),
            tuple(_group_row(group, with_updates) for group in self.groups),
            tuple(heading.legend for heading in headings),
        )
        ratios = range(len(self.groups[0].masks))
        for start in ratios[::_RATIOS_PER_TABLE]:
            yield self._mask_table(ratios[start : start + _RATIOS_PER_TABLE])

    def _mask_table(self, ratios: range) -> Table:
        masks = self.groups[0].masks
        title = "overlap with the mask of the previous logged step, by mask ratio"
        overlap, *others = (heading.head for heading in _OF_MASKS)
        heads = [(Lines(overlap, f"at {masks[i].mask_ratio:g}"), *others) for i in ratios]
        return Table(
            title if not ratios.start else "",
            ("group", *(head for three in heads for head in three)),
            tuple(
                (group.group, *(cell for i in ratios for cell in _mask_cells(group.masks[i])))
                for group in self.groups
            ),
            tuple(heading.legend for heading in _OF_MASKS) if ratios.stop == len(masks) else (),
        )


def _group_row(group: GroupSummary, with_updates: bool) -> tuple[str, ...]:
    updates = (group.bits_changed, group.bf16_changed, group.stalled) if with_updates else ()
    return (
        group.group,
        f"{group.tensors:,}",
        f"{group.entries:,}",
        _percent(group.share),
        _number(group.median, ".2e"),
        _number(group.norm, ".3g"),
        _percent(group.zeros),
        *map(_percent, updates),
    )


def _mask_cells(mask: MaskSummary) -> tuple[str, ...]:
    return _number(mask.overlap, ".3f"), _number(mask.chance, ".3f"), _percent(mask.coverage)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def summarize_run(run: RunRecord) -> RunSummary:
    """Summarize a run, by layer group, and over all tensors if there are several groups.

    Args:
        run: finished or not.

    Returns:
        Its numbers.
    """
    steps = np.unique(run.tensors["step"].to_numpy(dtype=np.int64))
    if not len(steps):
        return RunSummary(0, None, None, 0, 0, 0, [], [])
    averaged = -(-len(steps) // 10)
    names = [str(name) for name in run.tensors["tensor"].unique()]
    members: dict[str, set[str]] = {group: set() for group in LAYER_GROUPS}
    for name in names:
        members[layer_group(name)].add(name)
    members = {group: held for group, held in members.items() if held}
    if len(members) > 1:
        members = {"all": set(names), **members}
    sizes = _sizes(run.tensors)
    groups = [
        _group_summary(run, group, held, int(steps[-averaged]), sizes)
        for group, held in members.items()
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
    """Tensor -> entries."""
    rows = tensors.drop_duplicates("tensor")
    return {str(n): int(e) for n, e in zip(rows["tensor"], rows["entries"], strict=True)}


def _group_summary(
    run: RunRecord, group: str, names: set[str], since: int, sizes: dict[str, int]
) -> GroupSummary:
    last, bins = (
        frame[(frame["step"] >= since) & frame["tensor"].isin(names)]
        for frame in (run.tensors, run.histograms)
    )
    entries = sum(sizes[name] for name in names)
    norms = (last["norm"] ** 2).groupby(last["step"]).sum(skipna=False) ** 0.5
    logged = float(last["entries"].sum())
    return GroupSummary(
        group,
        len(names),
        entries,
        entries / sum(sizes.values()),
        _median(bins),
        float(norms.mean(skipna=False)),
        float(last["zeros"].sum()) / logged if logged else math.nan,
        _mean_over_entries(last, "bits_changed"),
        _mean_over_entries(last, "bf16_changed"),
        _mean_over_entries(last, "stalled"),
        _mask_summaries(run.masks, names, since),
        *_energies(last, bins),
    )


def _energies(last: pd.DataFrame, bins: pd.DataFrame) -> tuple[float, float]:
    """The shares of the squared norm in the largest 1 % and 10 % of the entries, means over the
    steps; NaN where a gradient is zero or not finite."""
    found = []
    entries = last.groupby("step")["entries"].sum()
    norms = last.groupby("step")["norm"].sum(skipna=False)
    for step, rows in bins.groupby("step"):
        counts = rows.groupby(["low", "high"])["count"].sum().iloc[::-1]
        low, high = (counts.index.get_level_values(at).to_numpy(float) for at in (0, 1))
        # Relative to the largest, so that no square overflows.
        middles = np.where(np.isfinite(high), (low / low[0] + high / low[0]) / 2, 1.0)
        numbers = counts.to_numpy(float)
        squares = numbers * middles**2
        if not (squares.sum() > 0 and np.isfinite(norms.get(step, math.nan))):
            return math.nan, math.nan
        until, energy = (np.concatenate([[0.0], np.cumsum(part)]) for part in (numbers, squares))
        found.append(
            [np.interp(top * entries[step], until, energy) / energy[-1] for top in (0.01, 0.1)]
        )
    if not found:
        return math.nan, math.nan
    first, tenth = np.mean(found, axis=0)
    return float(first), float(tenth)


def _mask_summaries(masks: pd.DataFrame, names: set[str], since: int) -> list[MaskSummary]:
    ratios = sorted(float(ratio) for ratio in masks["mask_ratio"].unique())
    masks = masks[masks["tensor"].isin(names)]
    summaries = []
    for ratio in ratios:
        rows = masks[masks["mask_ratio"] == ratio]
        last = rows[rows["step"] >= since]
        covered = rows[rows["coverage"].notna()].sort_values("step")
        summaries.append(
            MaskSummary(
                ratio,
                _mean_over_entries(last, "jaccard_previous"),
                _mean_over_entries(last, "chance_previous"),
                _mean_over_entries(covered.drop_duplicates("tensor", keep="last"), "coverage"),
            )
        )
    return summaries


def _mean_over_entries(rows: pd.DataFrame, column: str) -> float:
    """The mean of a column, weighted by entries; NaN if no row has a value."""
    logged = rows[rows[column].notna()]
    if not logged["entries"].sum():
        return math.nan
    return float(np.average(logged[column].astype(float), weights=logged["entries"].astype(float)))


def _median(bins: pd.DataFrame) -> float:
    """The geometric middle of the bin that holds the median."""
    if bins.empty:
        return math.nan
    counts = bins.groupby(["low", "high"])["count"].sum()
    running = counts.to_numpy().cumsum()
    low, high = counts.index[int(np.searchsorted(running, running[-1] / 2))]
    return math.sqrt(low) * math.sqrt(high)


def _faults(tensors: pd.DataFrame) -> list[Fault]:
    faults = []
    for column, what in (("nans", "NaN"), ("infinities", "infinity")):
        rows = tensors[tensors[column] > 0]
        for name, steps in rows.groupby(rows["tensor"].astype(str))["step"]:
            faults.append(Fault(str(name), what, int(steps.min()), int(steps.nunique())))
    return sorted(faults, key=lambda fault: (fault.first_step, fault.tensor, fault.what))
