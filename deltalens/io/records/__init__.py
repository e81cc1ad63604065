"""Folders of records: studies, probe runs and trainings. No torch here."""

from deltalens.catalog.studies import LEARNING_RATE_COLUMN
from deltalens.io.records.chosen_rates import (
    as_choosing,
    chosen,
    deciding_metric,
    has_grid,
    without_choosing,
)
from deltalens.io.records.failures import Failure
from deltalens.io.records.identity import Union
from deltalens.io.records.journal import Cell, Measurement, Setting
from deltalens.io.records.kinds import TASK_COSTS
from deltalens.io.records.run import RunRecord, RunWriter, is_run, load_run
from deltalens.io.records.study import StudyFolder, check_study_folder
from deltalens.io.records.study_manifest import recorded_settings, specification_of
from deltalens.io.records.study_record import StudyRecord, is_study, load_study
from deltalens.io.records.texts import has_texts, read_texts, write_texts
from deltalens.io.records.training import ADAPTER, MASKS, TrainingFolder
from deltalens.io.records.training_record import (
    TrainingRecord,
    find_run,
    is_training,
    load_training,
)

__all__ = [
    "ADAPTER",
    "LEARNING_RATE_COLUMN",
    "MASKS",
    "TASK_COSTS",
    "Cell",
    "Failure",
    "Measurement",
    "RunRecord",
    "RunWriter",
    "Setting",
    "StudyFolder",
    "StudyRecord",
    "TrainingFolder",
    "TrainingRecord",
    "Union",
    "as_choosing",
    "check_study_folder",
    "chosen",
    "deciding_metric",
    "find_run",
    "has_grid",
    "has_texts",
    "is_run",
    "is_study",
    "is_training",
    "load_run",
    "load_study",
    "load_training",
    "read_texts",
    "recorded_settings",
    "specification_of",
    "without_choosing",
    "write_texts",
]
