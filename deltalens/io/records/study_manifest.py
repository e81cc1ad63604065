"""The manifest of a study: its specification, the columns of its cells, and the facts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.errors import RecordError
from deltalens.io.records.folder import Manifest
from deltalens.io.records.journal import Cell, CellKind, Setting
from deltalens.io.records.kinds import kind_of
from deltalens.io.records.schema import NAME, Fields, Items, Text, Whole, refuse
from deltalens.io.records.table import VALUES

__all__ = [
    "STUDY",
    "cell_kind",
    "check_facts",
    "read_manifest",
    "recorded_settings",
    "specification_of",
]

STUDY = Manifest(
    "study",
    "study.json",
    Fields({"asked": Fields({"kind": NAME}), "facts": Fields(), "columns": Items(NAME, 0, 100)}),
)
_WRITTEN_BY = Fields(known={"deltalens": Text(), "identity": Whole()})


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a study's manifest.

    Args:
        path: the study's folder.

    Returns:
        The manifest, with the specification and the facts that are there checked for its kind.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    file, manifest = path / STUDY.name, STUDY.read(path)
    refuse(file, [*_WRITTEN_BY.faults(manifest, "")])
    spec, facts, kind = manifest["asked"], manifest["facts"], kind_of(manifest["asked"])
    if kind is not None:
        refuse(file, [*kind.spec.faults(spec, "asked")])
        present = Fields(known={**kind.facts.known, **kind.facts.needed})
        refuse(file, [*present.faults(facts, "facts")])
        refuse(file, [*(kind.rule(spec, facts) if kind.rule else ())])
    return manifest


def cell_kind(file: Path, spec: Setting, columns: Sequence[str], sealed: bool = True) -> CellKind:
    """Say what the lines of a study's journal have to contain.

    Args:
        file: the manifest, for messages.
        spec: the specification.
        columns: of a cell's setting.
        sealed: whether every line must have a checksum.

    Returns:
        That of the study's kind; of a kind that this version does not know, any cells.

    Raises:
        RecordError: the columns are not those of the kind, or do not all differ.
    """
    kind = kind_of(spec)
    expected = {} if kind is None else kind.columns(spec)
    if kind is not None and tuple(columns) != tuple(expected):
        raise RecordError(f"{file}: columns is {[*columns]}; expected {[*expected]}")
    if len({*columns, *VALUES}) < len(columns) + len(VALUES):
        raise RecordError(f"{file}: columns is {[*columns]}; expected names that all differ")
    if kind is None:
        return CellKind.any(columns, sealed)
    return CellKind(expected, kind.metrics, sealed)


def check_facts(file: Path, manifest: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    """Refuse a study with finished cells that lacks a fact that its kind requires.

    Args:
        file: the manifest, for messages.
        manifest: what it contains.
        cells: the finished cells.

    Raises:
        RecordError: names the fact.
    """
    kind = kind_of(manifest["asked"])
    if kind is not None and cells:
        refuse(file, [*Fields(kind.facts.needed).faults(manifest["facts"], "facts")])


def recorded_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Look up the methods' settings of the study that a folder may contain.

    Args:
        path: the folder.

    Returns:
        Label of a method -> its own settings; {} if there is no study, or one without methods.

    Raises:
        RecordError: there is a study, and it is damaged.
    """
    if not os.path.isfile(path / STUDY.name):
        return {}
    settings: dict[str, dict[str, Any]] = read_manifest(path)["asked"].get("settings") or {}
    return settings


def specification_of(path: Path) -> Setting:
    """Read the specification of the study in a folder; it does not change while cells are measured.

    Args:
        path: the folder.

    Returns:
        JSON values by name.

    Raises:
        RecordError: there is no study, or its manifest is damaged.
    """
    specification: Setting = STUDY.read(path)["asked"]
    return specification
