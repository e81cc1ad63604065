"""Folders of records: studies, runs of a probe, trainings. No torch here."""

from deltalens.io.records.folder import read_manifest, write_manifest
from deltalens.io.records.run import RunRecord, RunWriter, load_run
from deltalens.io.records.study import (
    Cell,
    Measurement,
    Setting,
    StudyFolder,
    StudyRecord,
    check_study_folder,
    encode_finite,
    load_study,
)

__all__ = [
    "Cell",
    "Measurement",
    "RunRecord",
    "RunWriter",
    "Setting",
    "StudyFolder",
    "StudyRecord",
    "check_study_folder",
    "encode_finite",
    "load_run",
    "load_study",
    "read_manifest",
    "write_manifest",
]
