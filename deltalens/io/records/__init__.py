"""Folders of records: studies, probe runs and trainings. No torch here."""

from deltalens.io.records.identity import Union
from deltalens.io.records.journal import Cell, Measurement, Setting
from deltalens.io.records.run import RunRecord, RunWriter, load_run
from deltalens.io.records.study import (
    StudyFolder,
    StudyRecord,
    check_study_folder,
    load_study,
)
from deltalens.io.records.texts import has_texts, read_texts, write_texts
from deltalens.io.records.training import (
    ADAPTER,
    MASKS,
    TrainingFolder,
    TrainingRecord,
    find_run,
    is_training,
    load_training,
)

__all__ = [
    "ADAPTER",
    "MASKS",
    "Cell",
    "Measurement",
    "RunRecord",
    "RunWriter",
    "Setting",
    "StudyFolder",
    "StudyRecord",
    "TrainingFolder",
    "TrainingRecord",
    "Union",
    "check_study_folder",
    "find_run",
    "has_texts",
    "is_training",
    "load_run",
    "load_study",
    "load_training",
    "read_texts",
    "write_texts",
]
