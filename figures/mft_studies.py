"""What MFT's figures and tables take from a study: its numbers by data set, metric and step, and
how the methods are called and drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltalens.catalog.looks import looks_of
from deltalens.catalog.methods import METHODS, method_name
from deltalens.catalog.metrics import is_shown
from deltalens.errors import RecordError
from deltalens.figures.loading import load_finite
from deltalens.figures.paper_points import benchmark_of
from deltalens.io.records import StudyRecord, TrainingRecord

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DOMAINS",
    "LOOKS",
    "MftStudy",
    "check_data",
    "check_same_data",
    "domain_of",
    "in_order",
    "label",
    "load",
    "load_all",
    "parts_of",
    "shown_cells",
]


class Benchmarks(NamedTuple):
    """Those of the paper for a domain."""

    trained_on: tuple[str, ...]
    """What data of the domain are called."""
    names: tuple[str, ...]


DOMAINS: Mapping[str, Benchmarks] = {
    "Math": Benchmarks(("math", "maths"), ("GSM8K", "MATH")),
    "Coding": Benchmarks(("code", "coding"), ("HumanEval", "HumanEval+")),
    "IF": Benchmarks(("if", "instructions"), ("IF-Eval", "Alpaca-Eval")),
}
"""The paper's domains, as its tables call them."""
_AT_STEP = re.compile(r"\A(?P<name>[^@]*)@(?P<step>\d{1,15})")


LOOKS = {name: one.look for name, one in METHODS.items() if one.look is not None}
"""How each method is called and drawn, in the paper's order. Plain training continues the
fine-tune, under DPO by preferences."""


def label(method: str) -> str:
    """Name a method as MFT's figures do.

    Args:
        method: its label in records.

    Returns:
        Its label in a picture.
    """
    return looks_of([method], known=LOOKS)[method].label


def in_order(methods: Sequence[str]) -> list[str]:
    """Sort methods as the paper lists them.

    Args:
        methods: with repetitions or without.

    Returns:
        Each method once; those that the paper does not have at the end.
    """
    place = {name: at for at, name in enumerate(LOOKS)}
    return sorted(dict.fromkeys(methods), key=lambda one: place.get(method_name(one), len(place)))


@dataclass(frozen=True)
class MftStudy:
    """A study of masks on a fine-tune, finished or not."""

    record: StudyRecord
    frame: pd.DataFrame
    """Its cells, without training loss and without perplexity, which is the loss again; `data`,
    `name` and `step` are the metric's three parts, the step NaN at the end of a training."""

    @property
    def path(self) -> Path:
        """The study's folder."""
        return self.record.path

    @property
    def methods(self) -> list[str]:
        """The methods of the specification and of the cells, in the paper's order."""
        spec = (_shown_as(self.record, str(one)) for one in self.record.spec.get("methods") or [])
        return in_order([*spec, *map(str, self.frame["method"])])

    @property
    def trained_on(self) -> str:
        """The name of the training file; of the folder, if nothing was trained."""
        data = self.record.spec.get("data") or [self.path.name]
        # A study without training lists the files that it is measured on instead.
        return data[0] if isinstance(data[0], str) else self.path.name

    @property
    def domain(self) -> str:
        """The training file's name up to the first separator: `maths` of `maths_train`."""
        return domain_of(self.trained_on)

    @property
    def sets(self) -> dict[str, list[str]]:
        """Data set -> its metrics at the end, the leading one first."""
        return _sets(self.frame[self.frame["step"].isna()])

    @property
    def own_sets(self) -> dict[str, list[str]]:
        """The data sets of the training's domain, by their names or as the paper has its
        benchmarks; all, if no name tells."""
        held = self.sets
        of_paper = {
            name for one in DOMAINS.values() if self.domain in one.trained_on for name in one.names
        }
        own = [name for name in held if domain_of(name) == self.domain]
        own = own or [name for name in held if benchmark_of(name) in of_paper]
        return {name: held[name] for name in own or held}

    @property
    def steps(self) -> int | None:
        """Optimizer steps of each training; None if the study does not say."""
        spec = self.record.spec
        if isinstance(spec.get("steps"), int):
            return int(spec["steps"])
        rows = [*(spec.get("data") or []), None][1:2]
        parts = (*rows, spec.get("epochs"), spec.get("batch_size"), spec.get("accumulate"))
        if len(parts) != 4 or not all(isinstance(one, int | float) and one > 0 for one in parts):
            return None
        count, epochs, batch, micro = map(float, parts)
        return max(1, math.ceil(math.ceil(count / batch) / micro * epochs))

    def of(self, data: str, name: str) -> pd.DataFrame:
        """Select the cells of a metric at the end of the trainings.

        Args:
            data: the data set.
            name: the metric.

        Returns:
            The cells, one for each method, setting and seed.
        """
        frame = self.frame
        return frame[(frame["data"] == data) & (frame["name"] == name) & frame["step"].isna()]


def domain_of(name: str) -> str:
    """Read the domain off the name of a data file.

    Args:
        name: `maths_train`.

    Returns:
        What stands before the first separator: `maths`.
    """
    return re.split(r"[_.\-]", name, maxsplit=1)[0] or name


def _sets(frame: pd.DataFrame) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for data, name in dict.fromkeys(zip(frame["data"], frame["name"], strict=True)):
        found.setdefault(str(data), []).append(str(name))
    return found


def load(folder: str | Path, kind: str) -> MftStudy:
    """Read a study of one kind.

    Args:
        folder: of the study.
        kind: that it must have.

    Returns:
        The study.

    Raises:
        RecordError: no study of this kind is there, or no cell of it is finished.
    """
    record = load_finite(folder)
    if record.kind != kind:
        raise RecordError(f"{record.path}: no {kind} with finished cells")
    frame = shown_cells(record)
    return MftStudy(
        record, frame.assign(method=[_shown_as(record, str(one)) for one in frame["method"]])
    )


def shown_cells(record: StudyRecord) -> pd.DataFrame:
    """Select what figures show of a study: no training loss, no perplexity.

    Args:
        record: of a study of trainings.

    Returns:
        Its cells, sorted by their settings, with the parts of the metric in `data`, `name` and
        `step`; the step is NaN at the end of a training.

    Raises:
        RecordError: no cell is finished, or nothing was measured at the end of a training.
    """
    if record.cells.empty:
        raise RecordError(f"{record.path}: no {record.kind} with finished cells")
    keys = [name for name in record.cells.columns if name not in ("metric", "value", "stderr", "n")]
    # The journal is in the order in which cells finished; means must repeat byte for byte.
    cells = record.cells.sort_values(keys, kind="stable")
    (only, *_), *_ = _files(record) or [["the study's data"]]
    parts = [parts_of(metric, str(only)) for metric in cells["metric"]]
    data, names, steps = zip(*parts, strict=True)
    cells = cells.assign(data=data, name=names, step=steps)
    frame = cells[cells["name"].map(is_shown)]
    if frame["step"].notna().all():
        raise RecordError(f"{record.path}: a {record.kind} without a metric of its evaluation data")
    return frame


def _shown_as(record: StudyRecord, method: str) -> str:
    """The name under which a record's method is shown, by where it starts and its objective. (The
    first version trained every LoRA on the fine-tune, as other studies do.)"""
    if method_name(method) == "lora" and record.setting("from", method) != "base":
        return method.replace("lora", "lora-on-ft", 1)
    if method == "sft" and record.spec.get("objective") == "dpo":
        return "dpo"
    return method


def _files(record: StudyRecord | TrainingRecord) -> list[list[Any]]:
    """Name, rows and digest of each file that the study is measured on."""
    files = record.spec.get("eval_data") or record.spec.get("data") or []
    return [file for file in files if isinstance(file, list)]


def parts_of(metric: str, only: str) -> tuple[str, str, float]:
    """Take the name of a metric apart.

    Args:
        metric: as the records name it: `maths_test/exact_match@100`.
        only: the data set of a name without one.

    Returns:
        Data set, metric and step; the step is NaN at the end of a training.
    """
    data, _, last = metric.rpartition("/")
    found = _AT_STEP.fullmatch(last)
    name, step = (found["name"], float(found["step"])) if found else (last, math.nan)
    return data or only, name, step


def load_all(folders: Sequence[str | Path], kind: str) -> list[MftStudy]:
    """Read several studies for one figure.

    Args:
        folders: of the studies.
        kind: that they must have.

    Returns:
        The studies, in the same order.

    Raises:
        RecordError: as `load`; or two were measured on different data of the same name.
    """
    studies = [load(folder, kind) for folder in folders]
    check_data(studies)
    return studies


def check_data(studies: Sequence[MftStudy]) -> None:
    """Refuse studies whose numbers cannot stand side by side.

    Args:
        studies: for one figure.

    Raises:
        RecordError: two were measured on different data of the same name.
    """
    check_same_data([study.record for study in studies])


def check_same_data(records: Sequence[StudyRecord | TrainingRecord]) -> None:
    """Refuse studies and trainings that were measured on different data of the same name.

    Args:
        records: for one figure.

    Raises:
        RecordError: names both.
    """
    seen: dict[str, tuple[Any, Path]] = {}
    for record in records:
        for name, *what in _files(record):
            first, where = seen.setdefault(str(name), (what, record.path))
            if first != what:
                raise RecordError(
                    f"{record.path}: its data {name!r} has other rows than in {where}, so their "
                    "numbers cannot be compared"
                )
