"""What a reader should know before believing a record: what is missing, what is not a number, what
was left out. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltalens.io.records import RunRecord, StudyRecord, TrainingRecord
from deltalens.io.tables import is_finite
from deltalens.reports import failed_cells
from deltalens.reports.progress import unfinished
from deltalens.reports.run import summarize_run
from deltalens.reports.training import summarize_training
from deltalens.reports.wording import and_others, percent

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["caveats_of"]

_STALLED = 0.01
"""Share of a group's entries that has to stall before a reader is told."""
_FAULTS_SHOWN = 8


def caveats_of(record: StudyRecord | RunRecord | TrainingRecord) -> list[str]:
    """Say what is missing from a record, or wrong with what it measured.

    Args:
        record: of a study, a probe's run, or a training; finished or not.

    Returns:
        Sentences; none of a finished record with nothing to remark.

    Raises:
        RecordError: a file of it is damaged.
    """
    if isinstance(record, RunRecord):
        return [*_of_run(record)]
    if isinstance(record, TrainingRecord):
        return [*_of_training(record)]
    return [*_of_study(record)]


def _of_study(record: StudyRecord) -> Iterator[str]:
    if record.cells.empty:
        yield "not finished: no cell is measured yet"
    elif said := unfinished(record):
        yield said
    yield from failed_cells(record)
    values = record.cells["value"]
    if gaps := int((~is_finite(values)).sum()):
        yield f"{gaps:,} of {len(values):,} values are NaN or infinite: gaps in tables and pictures"
    if unpaired := record.facts.get("unpaired"):
        yield f"rate 1 is not the base: {unpaired}"
    if record.is_outdated:
        yield (
            f"written by deltalens {record.version or 'of an unknown version'}, which decided the "
            "numbers by other rules than this one: compare it with care"
        )
    yield from map(str, record.facts.get("notes", []))


def _of_training(record: TrainingRecord) -> Iterator[str]:
    if not record.finished:
        yield "not finished: the folder holds no result yet"
    summary = summarize_training(record)
    if not summary.losses:
        yield "no training loss is logged"
    gaps = [step for step, loss in summary.losses if not math.isfinite(loss)]
    if gaps:
        yield f"the training loss is NaN or infinite at {len(gaps):,} steps, first at {gaps[0]:,}"
    if lost := [name for name, one in summary.measured.items() if not math.isfinite(one.value)]:
        yield f"not finite at the end: {and_others(lost)}"
    yield from map(str, record.facts.get("notes", []))


def _of_run(run: RunRecord) -> Iterator[str]:
    if not run.closed:
        yield "not closed: the training goes on, or was stopped before its end"
    summary = summarize_run(run)
    if not summary.steps:
        yield "no step is logged yet"
        return
    yield from (fault.sentence for fault in summary.faults[:_FAULTS_SHOWN])
    if len(summary.faults) > _FAULTS_SHOWN:
        yield f"NaN or infinity in {len(summary.faults) - _FAULTS_SHOWN:,} more gradients"
    yield from _stalled(run.tensors)
    if passed := run.facts.get("passed_over"):
        yield f"not watched: {and_others([f'{name} ({why})' for name, why in passed.items()])}"


def _stalled(tensors: pd.DataFrame) -> Iterator[str]:
    """Tensors whose update is lost in rounding at the last logged step."""
    logged = tensors[tensors["stalled"].notna()]
    if logged.empty:
        return
    last = logged[logged["step"] == logged["step"].max()]
    lost = last[last["stalled"].astype(float) > _STALLED].sort_values(
        ["stalled", "tensor"], ascending=[False, True]
    )
    if lost.empty:
        return
    named = [
        f"{name} {percent(float(share))}"
        for name, share in zip(lost["tensor"].astype(str), lost["stalled"], strict=True)
    ]
    tensors_said = "1 tensor stalls" if len(named) == 1 else f"{len(named):,} tensors stall"
    yield (
        f"{tensors_said} at step {int(last['step'].iloc[0]):,}: the update of entries that have a "
        f"gradient is lost in rounding ({and_others(named)})"
    )
