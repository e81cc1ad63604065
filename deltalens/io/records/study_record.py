"""A study, read from its folder. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.io.escaping import short_path
from deltalens.io.records.failures import FAILURES, Failure, read_failures
from deltalens.io.records.journal import JOURNAL, Setting, read_journal
from deltalens.io.records.study_manifest import STUDY, cell_kind, check_facts, read_manifest
from deltalens.io.records.table import VALUES, as_in_table, read_table
from deltalens.io.version import IDENTITY, has_checksums

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["StudyRecord", "is_study", "load_study"]


@dataclass(frozen=True, repr=False)
class StudyRecord:
    """A study, read from its folder."""

    path: Path
    kind: str
    """The kind of study: `drop-study`, ..."""
    spec: Setting
    """The specification: everything that decided the numbers."""
    facts: dict[str, Any]
    """Facts found on the way: entries, unchanged entries, notes."""
    cells: pd.DataFrame
    """One row per cell and metric: the setting's columns, then metric, value, stderr, n."""
    failures: tuple[Failure, ...] = ()
    """The cells that failed when they were last measured; asking again measures them again."""
    version: str = ""
    """The deltalens that wrote it."""
    identity: int = IDENTITY
    """Which version of what decides the numbers it recorded (`deltalens.io.version.IDENTITY`)."""

    def __repr__(self) -> str:
        setting = [name for name in self.cells.columns if name not in VALUES]
        cells = len(self.cells[setting].drop_duplicates()) if setting else 0
        metrics = [str(name) for name in self.cells["metric"].unique()]
        names = ", ".join(metrics[:4]) + (", ..." if len(metrics) > 4 else "")
        return (
            f"<{type(self).__name__} {short_path(self.path)}: {self.kind[:40]}, "
            f"{cells:,} finished cells, {len(metrics):,} metrics"
            f"{f' ({names[:100]})' if metrics else ''}>"
        )

    @property
    def plain(self) -> str:
        """The name of training without a mask in this study: `dpo` if that is the objective, else
        `sft`."""
        return "dpo" if self.spec.get("objective") == "dpo" else "sft"

    @property
    def is_outdated(self) -> bool:
        """Whether it was written by a version that decides numbers by other rules than this one."""
        return self.identity != IDENTITY

    @property
    def model(self) -> str:
        """The name of the model's folder or repository; empty if the study does not say."""
        return Path(str(self.facts.get("model", ""))).name

    def setting(self, name: str, method: str) -> Any:
        """Look up a setting of a method's trainings.

        Args:
            name: the setting: `mask_ratio`, ...
            method: the method: `gmt`, ...

        Returns:
            The method's value or else the one for all methods; None if there is neither.
        """
        of_method = self.spec.get("settings", {}).get(method, {})
        return of_method[name] if name in of_method else self.spec.get(name)


def is_study(folder: str | Path) -> bool:
    """Tell whether a folder is a study's.

    Args:
        folder: any path.

    Returns:
        Whether it has a study's manifest.
    """
    return Path(folder, STUDY.name).is_file()


def load_study(folder: str | Path) -> StudyRecord:
    """Read a study, finished or not. torch is not imported.

    Args:
        folder: the study's folder.

    Returns:
        Specification, facts and cells (a pandas DataFrame).

    Raises:
        RecordError: the folder is not a study, is damaged, or has a format that this version does
            not know.

    Example:
        >>> study = load_study("study")
        >>> study.kind
        'drop-study'
        >>> list(study.cells.columns)
        ['strategy', 'scope', 'rate', 'seed', 'metric', 'value', 'stderr', 'n']
    """
    import pandas as pd

    path = Path(folder)
    manifest = read_manifest(path)
    spec, columns = manifest["asked"], manifest["columns"]
    kind = cell_kind(path / STUDY.name, spec, columns, has_checksums(manifest["format"]))
    table = read_table(path)  # Before the journal, which then has every cell of the table.
    cells = read_journal(path / JOURNAL, kind)
    check_facts(path / STUDY.name, manifest, cells)
    rows = [
        {**cell.setting, "metric": name, **measurement._asdict()}
        for cell in as_in_table(path, table, cells, columns)
        for name, measurement in cell.metrics.items()
    ]
    frame = pd.DataFrame(rows, columns=[*columns, *VALUES])
    return StudyRecord(
        path,
        spec["kind"],
        spec,
        manifest["facts"],
        frame,
        tuple(read_failures(path / FAILURES, columns)),
        manifest.get("deltalens", ""),
        manifest.get("identity", 0),
    )
