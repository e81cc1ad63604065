"""The cells of a salience study, as its pictures take them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.errors import RecordError
from deltalens.figures.loading import load_finite
from deltalens.io.records import StudyRecord

__all__ = ["color_of", "labels_of", "load_salience", "metrics_of", "numbers"]


def load_salience(folder: Path) -> StudyRecord:
    """Read a salience study.

    Args:
        folder: of the study.

    Returns:
        The study.

    Raises:
        RecordError: it is another kind of study, or nothing of it is measured.
    """
    record = load_finite(folder)
    if record.kind != "salience" or record.cells.empty:
        raise RecordError(f"{record.path}: no salience study with finished cells")
    return record


def metrics_of(record: StudyRecord) -> list[str]:
    """List the salience metrics that are measured.

    Args:
        record: of the study.

    Returns:
        Their names, in the order of the table.
    """
    return [str(name) for name in dict.fromkeys(record.cells["salience"])]


def labels_of(metrics: Iterable[str]) -> list[str]:
    """Name metrics in a picture.

    Args:
        metrics: their names.

    Returns:
        Their labels in the catalog.
    """
    known = SALIENCE_METRICS
    return [known[name].label if name in known else name for name in metrics]


def color_of(metric: str) -> str:
    """Choose a metric's color.

    Args:
        metric: its name.

    Returns:
        The color in the catalog; gray for a metric that it does not know.
    """
    facts = SALIENCE_METRICS.get(metric)
    return facts.color if facts is not None else "0.5"


def numbers(record: StudyRecord, part: str, metric: str) -> dict[tuple[str, str], float]:
    """Read the numbers of one part of the study.

    Args:
        record: of the study.
        part: `agreement`, `budget`, `sample` or `fine-tune`.
        metric: such as `jaccard`.

    Returns:
        (salience metric, what it is compared with or where it was counted) -> number.
    """
    cells = record.cells
    own = cells[(cells["part"] == part) & (cells["metric"] == metric)]
    return {
        (str(one), str(of)): float(value)
        for one, of, value in zip(own["salience"], own["of"], own["value"], strict=True)
    }
