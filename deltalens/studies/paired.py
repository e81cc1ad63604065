"""A fine-tune and its base: what every study of the two checks before any work, says in its
records, and prepares its workers from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from deltalens.io.matching import pair
from deltalens.io.pairing import Pairing
from deltalens.io.records import StudyFolder, check_study_folder
from deltalens.scoring.loading import Loading, check_fits, pick_device, pick_dtype
from deltalens.scoring.texts import KeptTexts, Progress
from deltalens.studies.engine import StudyWatch
from deltalens.studies.executors import find_executor

__all__ = ["PairRecipe", "PairedModels", "at_work"]


@dataclass(frozen=True)
class PairedModels:
    """A fine-tune and its base."""

    pairing: Pairing
    loading: Loading
    """How either is loaded."""

    @classmethod
    def read(
        cls,
        ft: str | Path,
        base: str | Path,
        out: Path,
        *,
        include: str | None,
        exclude: str | None,
        strict: bool,
        device: str,
        dtype: str,
        trust_remote_code: bool,
        batch_tokens: int,
        jobs: int,
        executor: str | None,
    ) -> Self:
        """Read the two headers, and check all that a study of them needs; arguments are the
        study's.

        Raises:
            DeltaLensError: bad input.
        """
        pairing = pair(ft, base, include, exclude, strict)
        where = pick_device(device)
        kind = pick_dtype(dtype, pairing.ft)
        check_study_folder(out, [pairing.ft.path, pairing.base.path])
        find_executor(executor, jobs)
        check_fits(pairing.ft, kind, where, batch_tokens, jobs)
        return cls(pairing, Loading(kind, where, trust_remote_code))

    def identity(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that decides the numbers: two calls with the same are the same study.

        Args:
            spec: all of it but the models and how they are loaded.
        """
        return {
            "ft": self.pairing.ft.identity,
            "base": self.pairing.base.identity,
            **spec,
            "device": self.loading.device.type,
            "dtype": str(self.loading.dtype).removeprefix("torch."),
            "trust_remote_code": self.loading.trust_remote_code,
        }

    def facts(self, unchanged: int, more: Mapping[str, Any]) -> dict[str, Any]:
        """What the records say of the models.

        Args:
            unchanged: entries whose delta is exactly zero.
            more: whatever else the study found out about them.
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


@dataclass(frozen=True, kw_only=True)
class PairRecipe:
    """How a worker on a fine-tune and its base is prepared (see `Recipe`)."""

    models: PairedModels
    texts: KeptTexts
    stays = None
    shares_threads = False

    @property
    def one_device(self) -> bool:
        """See `Recipe`."""
        return self.models.loading.one_device

    def elsewhere(self) -> Self:
        """The same for workers after the first, which has written the texts."""
        return replace(self, texts=replace(self.texts, again=True))


class _Noting(Protocol):
    """A worker that has something to say for the records."""

    notes: list[str]

    def close(self) -> None: ...


W = TypeVar("W", bound=_Noting)
W_co = TypeVar("W_co", bound=_Noting, covariant=True)


class _Preparing(Protocol[W_co]):
    def prepare(self, watch: Progress) -> W_co: ...


@contextmanager
def at_work(recipe: _Preparing[W], folder: StudyFolder, watch: StudyWatch) -> Iterator[W]:
    """The first worker, until the study is done; what it has to say is in the records."""
    worker = recipe.prepare(watch)
    try:
        folder.facts["notes"] += worker.notes
        folder.write_manifest()
        yield worker
    finally:
        worker.close()
