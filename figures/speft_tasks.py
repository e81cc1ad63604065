"""The columns of SPEFT's tables: tasks, each a metric of a study on a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from deltalens.catalog.metrics import leading
from deltalens.errors import Lines, RecordError
from deltalens.figures.paper_points import plain_words
from deltalens.figures.speft_studies import SpeftStudy
from deltalens.figures.sweep_tables import measure
from deltalens.figures.tables import Measure

__all__ = ["Task", "tasks_of"]


class Task(NamedTuple):
    """A column: a metric of a study on a data set."""

    study: SpeftStudy
    data: str
    metric: str

    @property
    def where(self) -> str:
        """What was trained on, and measured on if that is something else."""
        told = self.data.startswith(self.study.domain)
        return self.data if told else f"{self.study.domain} → {self.data}"

    def is_called(self, name: str) -> bool:
        """Tell whether a column of the paper is this task.

        Args:
            name: `MNLI`; or model and training data, `Qwen2-7b, Alpaca`.

        Returns:
            Whether what was trained on, the data or the metric has the name in its own; with
            several parts each of them, one of which may name the model.
        """
        parts = [plain_words(part) for part in name.split(", ")]
        models = [self.study.record.model] if len(parts) > 1 else []
        own = [*models, self.study.trained_on, self.data, self.metric]
        return all(any(part in plain_words(one) for one in own) for part in parts)

    def measure(self, models: bool) -> Measure:
        """Say how its numbers are shown: like the paper's, with two places.

        Args:
            models: whether its head names the model.

        Returns:
            The column.
        """
        shown = measure(self.metric)
        named = [self.study.record.model] if models and self.study.record.model else []
        head = Lines(*named, self.where, shown.head)
        return replace(shown, head=head, digits=max(2, shown.digits))

    def values(self, method: str) -> list[float]:
        """List a method's numbers.

        Args:
            method: its name in the records.

        Returns:
            One number for each seed.
        """
        held = self.study.of(self.data, self.metric)
        return [float(value) for value in held[held["method"] == method]["value"]]

    def rows(self) -> list[int]:
        """List how many rows its numbers were measured on.

        Returns:
            The counts that the records have.
        """
        counts = self.study.of(self.data, self.metric)["n"]
        return [int(n) for n in counts if not math.isnan(n) and n > 0]


def tasks_of(studies: Sequence[SpeftStudy]) -> list[Task]:
    """List the columns of studies: for each data set of a study's own domain the leading metric. A
    single data set is shown with all its metrics, the leading one first.

    Args:
        studies: such as one for each task of a benchmark.

    Returns:
        The columns.

    Raises:
        RecordError: two studies have the same one.
    """
    sets = [
        (study, data, metrics)
        for study in studies
        for data, metrics in study.own_sets.items()
        if metrics
    ]
    tasks = []
    for study, data, metrics in sets:
        first = leading(metrics) or metrics[0]
        others = [one for one in metrics if one != first] if len(sets) == 1 else []
        tasks += [Task(study, data, metric) for metric in (first, *others)]
    seen: dict[tuple[str, ...], Task] = {}
    for task in tasks:
        other = seen.setdefault((task.study.record.model, task.where, task.metric), task)
        if other is not task:
            raise RecordError(
                f"{task.study.path}: a second study of {task.where} beside {other.study.path}; "
                "draw only one of them"
            )
    return tasks
