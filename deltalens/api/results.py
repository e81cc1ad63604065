"""What the functions of `deltalens` return: objects that know their folder, and show themselves."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deltalens.catalog.plugins import load_code
from deltalens.errors import RecordError
from deltalens.io.escaping import plain
from deltalens.io.records import RunRecord, StudyRecord

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from deltalens.io.pairing import Pairing
    from deltalens.io.tables import Table

__all__ = ["Inspection", "Run", "Shown", "Study", "Training"]


class Shown:
    """A result that lies in a folder, and has sentences, tables and pictures."""

    path: Path | None

    @property
    def folder(self) -> Path | None:
        """Where it lies."""
        return self.path

    def summary(self) -> str:
        """What was found, in sentences.

        Returns:
            One sentence a line.

        Raises:
            RecordError: nothing is finished yet.
        """
        return "\n".join(plain(line) for line in self._sentences())

    @property
    def tables(self) -> list[pd.DataFrame]:
        """The summary's tables, as the command prints them; `attrs["title"]` says what each is, and
        `attrs["legend"]` what the columns mean."""
        return [_frame(table) for table in self._tables()]

    def figures(self) -> dict[str, Figure]:
        """All pictures, as matplotlib figures; nothing is written.

        Returns:
            The name of each picture's file, without its ending -> figure.

        Raises:
            RecordError: there is nothing to draw.
        """
        import matplotlib as mpl

        backend = mpl.get_backend()
        try:
            return {drawing.name: drawing.figure for drawing in self._drawings()}
        finally:
            if mpl.get_backend() != backend:
                # A notebook's own.
                mpl.use(backend)

    def figure(self, name: str | None = None) -> Figure:
        """One picture, as a matplotlib figure; nothing is written.

        Args:
            name: of the picture's file, without its ending; the first if None.

        Returns:
            The figure.

        Raises:
            RecordError: there is no such picture; names those that there are.
        """
        figures = self.figures()
        if not figures or (name is not None and name not in figures):
            named = ", ".join(figures) or "none"
            raise RecordError(f"{self.path}: no picture {name or ''!r}; there are: {named}")
        return figures[name] if name is not None else next(iter(figures.values()))

    def _sentences(self) -> Sequence[str]:
        raise NotImplementedError

    def _tables(self) -> Sequence[Table]:
        raise NotImplementedError

    def _drawings(self) -> Sequence[Any]:
        drawings: Sequence[Any] = load_code("deltalens.figures:drawings")(self.path)
        return drawings

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{html.escape(plain(repr(self)))}</b></p>"]
        try:
            parts += [f"<p>{html.escape(line)}</p>" for line in self.summary().splitlines()]
            parts += map(_table_html, self.tables)
        except RecordError as error:
            parts.append(f"<p>{html.escape(plain(str(error)))}</p>")
        return f"<div>{''.join(parts)}</div>"


@dataclass(frozen=True, repr=False)
class Study(Shown, StudyRecord):
    """A study: its specification, its cells, and what they say.

    Example:
        >>> study = deltalens.load_study("study")
        >>> study.cells.columns.tolist()
        ['strategy', 'scope', 'rate', 'seed', 'metric', 'value', 'stderr', 'n']
    """

    @classmethod
    def of(cls, record: StudyRecord) -> Self:
        """A study's record, with sentences, tables and pictures.

        Args:
            record: as `deltalens.io.records.load_study` reads it.

        Returns:
            The study.
        """
        return cls(**{each.name: getattr(record, each.name) for each in fields(StudyRecord)})

    def _sentences(self) -> Sequence[str]:
        from deltalens.reports import failed_cells, task_costs

        notes = [f"note: {note}" for note in self.facts.get("notes", [])]
        return [*self._summary().sentences(), *task_costs(self), *failed_cells(self), *notes]

    def _tables(self) -> Sequence[Table]:
        return [*self._summary().tables()]

    def _summary(self) -> Any:
        from deltalens.reports import summarize

        return summarize(self)


@dataclass(frozen=True, repr=False)
class Training(Shown):
    """A finished training: an ordinary checkpoint, and what was measured.

    Example:
        >>> training = deltalens.train(
        ...     "sft", "base", "train.jsonl", "new-sft", steps=1, train_limit=8, max_length=64
        ... )
        >>> print(training.summary())
        1 steps in ...
        mean training loss over the last 10 % of steps: ... (nats per target token)
    """

    path: Path
    method: str
    """Its name."""
    steps: int
    """Optimizer steps in all."""
    seconds: float
    """Wall time of the steps that the last call took."""
    loss: float
    """Mean training loss over the last tenth of the steps, in `loss_unit`."""
    loss_unit: str
    metrics: dict[str, tuple[float, float | None, int]]
    """On the evaluation data at the end: name -> value, standard error, n."""
    notes: tuple[str, ...] = ()
    run: Path | None = None
    """The probe's run, for `deltalens.monitor`."""
    masks: Path | None = None
    """A file that says which weights were removed."""
    adapter: Path | None = None
    """The folder of the adapter, before it was merged: for peft, or for `SparseAdapter`."""
    costs: tuple[str, ...] = ()
    """What was spent beside the steps, in sentences."""
    pictures: tuple[Path, ...] = field(default=())

    def __repr__(self) -> str:
        shown = "".join(f", {name} {values[0]:.4g}" for name, values in [*self.metrics.items()][:3])
        return (
            f"<Training by {self.method!r}: {self.steps} steps, loss {self.loss:.4g}{shown}, in "
            f"{_short(self.path)}>"
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, for scripts.

        Returns:
            JSON values by name.
        """
        paths = {"masks": self.masks, "run": self.run, "adapter": self.adapter}
        return {
            "out": str(self.path),
            "steps": self.steps,
            "seconds": self.seconds,
            "loss": self.loss,
            "metrics": {name: list(values) for name, values in self.metrics.items()},
            "notes": list(self.notes),
            "costs": list(self.costs),
            **{name: str(path) if path else None for name, path in paths.items()},
            "pictures": [str(picture) for picture in self.pictures],
        }

    def _sentences(self) -> Sequence[str]:
        lines = []
        if self.steps:
            lines.append(f"{self.steps:,} steps in {self.seconds:,.1f} s")
            loss = f"{self.loss:.4f} ({self.loss_unit})"
            lines.append(f"mean training loss over the last 10 % of steps: {loss}")
        lines += [
            f"{name}: {value:.4g} (n = {n:,})" for name, (value, _, n) in self.metrics.items()
        ]
        return [*lines, *self.costs, *(f"note: {note}" for note in self.notes)]

    def _tables(self) -> Sequence[Table]:
        return []


@dataclass(frozen=True, repr=False)
class Run(Shown, RunRecord):
    """What a probe logged of a training, finished or not.

    Example:
        >>> run = deltalens.load_run("run")
        >>> "median" in run.summary() or run.tables != []
        True
    """

    @classmethod
    def of(cls, record: RunRecord) -> Self:
        """A run's record, with sentences, tables and pictures.

        Args:
            record: as `deltalens.io.records.load_run` reads it.

        Returns:
            The run.
        """
        return cls(**{each.name: getattr(record, each.name) for each in fields(RunRecord)})

    def _sentences(self) -> Sequence[str]:
        from deltalens.reports.run_said import conclusions_of

        summary = self._summary()
        return [*summary.sentences(), *conclusions_of(self, summary)]

    def _tables(self) -> Sequence[Table]:
        return [*self._summary().tables()]

    def _summary(self) -> Any:
        from deltalens.reports.run import summarize_run

        return summarize_run(self)

    def _drawings(self) -> Sequence[Any]:
        drawings: Sequence[Any] = load_code("deltalens.figures:draw_for")(
            "gradients", self.path, titles="on"
        )
        return drawings


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """The anatomy of a delta.

    Example:
        >>> anatomy = deltalens.inspect("ft", "base")
        >>> anatomy.groups[0].level, anatomy.groups[0].entries > 0
        ('overall', True)
    """

    path: Path | None
    """The folder of its records, if they were written."""
    pairing: Pairing
    groups: tuple[Any, ...]
    """The whole delta, each kind of projection, layer and tensor: `level`, `name`, `entries`, and
    `metrics()` by name."""
    histograms: dict[str, dict[int, int]]
    """Layer -> floor(4 log2 |delta|) -> entries."""

    def __repr__(self) -> str:
        ft, base = self.pairing.ft.path, self.pairing.base.path
        entries = self.groups[0].entries
        return f"<Inspection of {entries:,} entries: {_short(ft)} against {_short(base)}>"

    def as_json(self) -> dict[str, Any]:
        """Everything, for scripts.

        Returns:
            JSON values by name.
        """
        return dict(self.report().as_json())

    def report(self) -> Any:
        """Its sentences and tables.

        Returns:
            A `deltalens.reports.inspect.InspectionSummary`.
        """
        from deltalens.reports.anatomy import Anatomy
        from deltalens.reports.inspect import InspectionSummary

        groups = (
            Anatomy(each.level, each.name, each.entries, each.metrics()) for each in self.groups
        )
        ft, base = str(self.pairing.ft.path), str(self.pairing.base.path)
        return InspectionSummary(ft, base, tuple(groups), self.pairing.notes, self.pairing.kept)

    def _sentences(self) -> Sequence[str]:
        return [*self.report().sentences(), *(f"note: {note}" for note in self.pairing.notes)]

    def _tables(self) -> Sequence[Table]:
        return [*self.report().tables()]

    def _drawings(self) -> Sequence[Any]:
        if self.path is None:
            raise RecordError("an inspection without a folder has no picture: give out")
        return super()._drawings()


def _short(path: Path) -> str:
    """A path that leaves a representation readable, however long it is."""
    text = plain(path)
    return text if len(text) <= 120 else f"...{text[-117:]}"


def _frame(table: Table) -> pd.DataFrame:
    import pandas as pd

    columns = [plain(head) for head in table.columns]
    frame = pd.DataFrame([[plain(cell) for cell in row] for row in table.rows], columns=columns)
    frame.attrs |= {"title": plain(table.title), "legend": [*map(plain, table.legend)]}
    return frame


def _table_html(table: pd.DataFrame) -> str:
    title = table.attrs["title"]
    heading = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    legend = "<br>".join(map(html.escape, table.attrs["legend"]))
    below = f"<p><small>{legend}</small></p>" if legend else ""
    return f"{heading}{table.to_html(index=False, border=0)}{below}"
