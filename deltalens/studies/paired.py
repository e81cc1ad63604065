"""A fine-tune and its base: the checks, facts and workers that all studies of the two share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch

from deltalens.io.matching import pair
from deltalens.io.pairing import Pairing
from deltalens.io.records import StudyFolder, check_study_folder
from deltalens.scoring.loading import Loading, pick_device, pick_dtype
from deltalens.scoring.planning import plan_measuring
from deltalens.scoring.suite import Suite
from deltalens.scoring.texts import Progress, StoredTexts
from deltalens.studies.engine import read_weights
from deltalens.studies.measuring import Measuring

__all__ = ["PairRecipe", "PairedModels", "at_work"]


@dataclass(frozen=True)
class PairedModels:
    """A fine-tune and its base."""

    pairing: Pairing
    loading: Loading
    """How each of them is loaded."""

    @classmethod
    def read(
        cls,
        ft: str | Path,
        base: str | Path,
        out: Path,
        measuring: Measuring,
    ) -> Self:
        """Read the headers of both, and check everything that a study of them requires.

        Args:
            ft, base: the checkpoints.
            out: the study's folder.
            measuring: which tensors take part, and where models are loaded and measured.

        Returns:
            The models.

        Raises:
            DeltaLensError: bad input.
        """
        pairing = pair(ft, base, measuring.include, measuring.exclude, measuring.strict)
        device = pick_device(measuring.device)
        dtype = pick_dtype(measuring.dtype, pairing.ft)
        check_study_folder(out, [pairing.ft.path, pairing.base.path])
        measuring.execution.check(device)
        loading = Loading(dtype, device, measuring.trust_remote_code, measuring.device_map)
        loading.check_fits(pairing.ft, measuring.batch_tokens, measuring.execution.models_here)
        return cls(pairing, loading)

    def identity(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Collect everything that decides the numbers. Calls with the same identity are the same
        study.

        Args:
            spec: the identity of everything but the models and how they are loaded.

        Returns:
            JSON values by name.
        """
        return {
            "ft": self.pairing.ft.identity,
            "base": self.pairing.base.identity,
            **spec,
            "device": self.loading.device.type,
            "dtype": str(self.loading.dtype).removeprefix("torch."),
            "trust_remote_code": self.loading.trust_remote_code,
        }

    def announce(self, cells: int, suite: Suite, measuring: Measuring) -> None:
        """Report what the study requires, and compute the models' fingerprints for its identity.

        Args:
            cells: the number of cells.
            suite: what is measured in each.
            measuring: whose `watch` is told, of so many `jobs`.
        """
        watch, checkpoints = measuring.watch, [self.pairing.ft, self.pairing.base]
        if watch.on_plan is not None:
            plan = plan_measuring(
                "cells",
                cells,
                checkpoints,
                suite.files,
                self.loading.dtype,
                self.loading.device,
                measuring.execution.jobs,
                suite.fidelity.sequences * suite.fidelity.new_tokens,
                suite.task_tokens,
            )
            watch.on_plan(plan)
        read_weights(watch, *checkpoints)

    def facts(self, unchanged: int, more: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the models for the records.

        Args:
            unchanged: number of entries whose delta is exactly 0.
            more: further facts of the study.

        Returns:
            JSON values by name.
        """
        pairing = self.pairing
        return {
            "ft": str(pairing.ft.path),
            "base": str(pairing.base.path),
            "tensors": len(pairing.pairs),
            "entries": pairing.entries,
            "unchanged": unchanged,
            "kept": len(pairing.kept),
            "unpaired": pairing.unpaired,
            **more,
            "notes": list(pairing.notes),
        }


class _WithSuite(Protocol):
    """A study's specification."""

    @property
    def suite(self) -> Suite: ...


@dataclass(frozen=True, kw_only=True)
class PairRecipe:
    """Prepares workers on a fine-tune and its base (see `Recipe`)."""

    models: PairedModels
    texts: StoredTexts
    spec: _WithSuite
    local_reason = None
    shares_threads = False

    @property
    def device(self) -> torch.device:
        """See `Recipe`."""
        return self.models.loading.device

    @property
    def paths(self) -> list[Path]:
        """See `Recipe`."""
        pairing = self.models.pairing
        models = (*pairing.ft.files, *pairing.base.files)
        return [*models, *self.spec.suite.paths, self.texts.folder]

    def elsewhere(self) -> Self:
        """Make the recipe for all workers after the first, which has written the texts.

        Returns:
            The same recipe, with texts that are read instead of sampled.
        """
        return replace(self, texts=replace(self.texts, reuse=True))


class _WithNotes(Protocol):
    """A worker with notes for the records."""

    notes: list[str]

    def close(self) -> None: ...


W = TypeVar("W", bound=_WithNotes)
W_co = TypeVar("W_co", bound=_WithNotes, covariant=True)


class _Preparing(Protocol[W_co]):
    def prepare(self, watch: Progress) -> W_co: ...


@contextmanager
def at_work(recipe: _Preparing[W], folder: StudyFolder, measuring: Measuring) -> Iterator[W]:
    """Prepare the first worker, add its notes to the records, and close it at the end.

    Args:
        recipe: prepares the worker.
        folder: the study's folder, open for writing.
        measuring: on which device, and whom to tell of progress.

    Yields:
        The worker.
    """
    with measuring.execution.on_first_device():
        worker = recipe.prepare(measuring.watch)
        try:
            folder.facts["notes"] += worker.notes
            folder.write_manifest()
            yield worker
        finally:
            worker.close()
