"""What a page shows of one study, training or run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltalens.catalog.plugins import load_code
from deltalens.catalog.studies import STUDIES, study_name
from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.records import RunRecord, StudyRecord, TrainingRecord
from deltalens.io.tables import Table
from deltalens.report_page.finding import Found, Record
from deltalens.report_page.pictures import Picture, pictures_of
from deltalens.reports import summarize, task_costs
from deltalens.reports.answers import Answer, answers_of
from deltalens.reports.caveats import caveats_of
from deltalens.reports.origin import Origin, conditions_of, origins_of, settings_of
from deltalens.reports.run import summarize_run
from deltalens.reports.training import summarize_training

__all__ = ["KINDS", "Repeat", "Section", "section_of"]

KINDS: Mapping[str, tuple[str, str]] = {
    "drop-study": ("Drop study", "Drop studies"),
    "inspect": ("Anatomy of a delta", "Anatomies of deltas"),
    "layer-sweep-drop": ("Layer sweep without training", "Layer sweeps without training"),
    "run": ("Gradients of a training", "Gradients of trainings"),
    "training": ("Training", "Trainings"),
    "mask-ratio-sweep": ("Sweep over mask ratios", "Sweeps over mask ratios"),
    "data-ratio-sweep": ("Sweep over parts of the data", "Sweeps over parts of the data"),
    "layer-sweep": ("Sweep over groups of blocks", "Sweeps over groups of blocks"),
    "comparison": ("Comparison of methods", "Comparisons of methods"),
    "density-sweep": ("Sweep over densities", "Sweeps over densities"),
    "mask-sweep": ("Sweep over kinds of masks", "Sweeps over kinds of masks"),
    "salience": ("Salience study", "Salience studies"),
    "efficiency": ("Efficiency study", "Efficiency studies"),
    "evaluate": ("Evaluation", "Evaluations"),
    "landscape": ("Loss landscape", "Loss landscapes"),
}
"""Kind -> what one, and what several are called, in the order of a page."""
_MOST_ROWS = 300
"""Rows of cells that a page shows; its CSV has all, up to ..."""
_MOST_CELLS = 5_000
"""... this many rows."""
_MOST_TENSORS = 1_000
"""The same of a run, whose rows are wider."""


@dataclass(frozen=True)
class Repeat:
    """The command that makes a record again."""

    command: str
    notes: tuple[str, ...] = ()
    """What has to be filled in, or cannot be told from the records."""


@dataclass(frozen=True)
class Section:
    """A record as a page shows it."""

    mark: str
    """Its anchor."""
    name: str
    path: str
    kind: str
    answers: Sequence[Answer] = ()
    caveats: Sequence[str] = ()
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    cells: Table | None = None
    """Every cell, or what a run logged; the first rows of large ones."""
    more_cells: int = 0
    """Rows that are left out of them."""
    origins: Sequence[Origin] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    repeat: Repeat | None = None

    @property
    def title(self) -> str:
        """What its kind is called."""
        return KINDS.get(self.kind, (self.kind, self.kind))[0]

    @property
    def shown_cells(self) -> Table | None:
        """The first rows of the cells."""
        if self.cells is None:
            return None
        return Table(self.cells.title, self.cells.columns, self.cells.rows[:_MOST_ROWS])

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return not (self.answers or self.tables or self.pictures or self.sentences)


def section_of(
    found: Found, number: int, repeat: Callable[[Record], Repeat | None] | None = None
) -> Section:
    """Read everything that a page says of a record.

    Args:
        found: the record.
        number: of the section on the page.
        repeat: says which command makes a record again.

    Returns:
        The section; where a part cannot be made because too little is measured, a caveat says so.
    """
    record, mark = found.record, f"s{number}"
    caveats = caveats_of(record)
    answers: Sequence[Answer] = ()
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    try:
        answers, (sentences, tables) = answers_of(record), _said(record)
    except RecordError as error:
        caveats = [*caveats, _without_path(error, record)]
    try:
        captions = load_code("deltalens.figures:FIGURES")
        pictures = pictures_of(_drawings(record), captions, mark)
    except DeltaLensError as error:
        # Of most trainings there is no picture, and a study without cells has said so above.
        if not isinstance(record, TrainingRecord) and (answers or sentences):
            caveats = [*caveats, f"not drawn: {_without_path(error, record)}"]
    cells, more = _cells(record)
    return Section(
        mark,
        found.name,
        str(record.path),
        _kind(record),
        answers,
        [*dict.fromkeys(caveats)],
        sentences,
        tables,
        pictures,
        cells,
        more,
        origins_of(record),
        conditions_of(record),
        settings_of(record),
        repeat(record) if repeat is not None else None,
    )


def _kind(record: Record) -> str:
    if isinstance(record, StudyRecord):
        return study_name(record.spec)
    return "run" if isinstance(record, RunRecord) else "training"


def _said(record: Record) -> tuple[list[str], list[Table]]:
    if isinstance(record, RunRecord):
        run = summarize_run(record)
        # What follows stands among the answers, and what is wrong among the caveats.
        return [*run.sentences()] if run.steps else [], [*run.tables()]
    if isinstance(record, TrainingRecord):
        training = summarize_training(record)
        return [*training.sentences()], training.tables()
    if record.kind not in STUDIES and study_name(record.spec) not in STUDIES:
        return _of_package(record)
    summary = summarize(record)
    return [*summary.sentences(), *task_costs(record)], [*summary.tables()]


def _of_package(record: StudyRecord) -> tuple[list[str], list[Table]]:
    """A kind that this installation may not know: its cells are shown all the same."""
    try:
        summary = summarize(record)
    except RecordError as error:
        return [_without_path(error, record)], []
    return [*summary.sentences()], [*summary.tables()]


def _drawings(record: Record) -> Iterable[Any]:
    drawn: Iterable[Any]
    if isinstance(record, RunRecord):
        drawn = load_code("deltalens.figures:draw_named")("gradients", record.path)
    else:
        drawn = load_code("deltalens.figures:drawings")(record.path)
    return drawn


def _cells(record: Record) -> tuple[Table | None, int]:
    """A study's cells, or what a run logged of each tensor, as text; and how many rows are left
    out."""
    if isinstance(record, TrainingRecord):
        return None, 0
    is_run = isinstance(record, RunRecord)
    frame = record.tensors if isinstance(record, RunRecord) else record.cells
    if frame.empty:
        return None, 0
    shown = frame.head(_MOST_TENSORS if is_run else _MOST_CELLS)
    rows = tuple(
        tuple(_text(value) for value in row) for row in shown.itertuples(index=False, name=None)
    )
    columns = tuple(str(name) for name in shown.columns)
    title = "Gradients, tensor by tensor" if is_run else "All cells"
    return Table(title, columns, rows), len(frame) - len(shown)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _without_path(error: DeltaLensError, record: Record) -> str:
    return str(error).removeprefix(f"{record.path}: ")
