"""What SPEFT's figures and tables take from a study: its cells, and the names of its rows. How such
studies are recorded is known in this module alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.methods import REFERENCES, Look, facts_of, look_of
from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.catalog.variants import Masks, is_sparse, masks_of, printed_row, variant_of
from deltalens.errors import RecordError
from deltalens.figures.loading import load_finite
from deltalens.figures.mft_studies import MftStudy, check_data, shown_cells

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COMPARISON",
    "DENSITY_SWEEP",
    "MASK_SWEEP",
    "TRAINED_SHARE",
    "SpeftStudy",
    "load_speft",
    "speft_look",
]

COMPARISON, MASK_SWEEP, DENSITY_SWEEP = "comparison", "mask-sweep", "density-sweep"
"""The kinds of studies. A sweep over masks has `scope` and `refresh_every` in place of `method`."""
TRAINED_SHARE = "trained_share"
"""The column of a density sweep: the share of the model's parameters that is trained."""
_RATE = "learning_rate"
_CHOICES = ("metric", "scope", "refresh_every")
"""Settings that choose the masks."""


@dataclass(frozen=True)
class SpeftStudy(MftStudy):
    """A study of sparse and low-rank tuning, finished or not. Methods have the names that its
    records give them, variants included."""

    @property
    def methods(self) -> list[str]:
        """The methods of the specification and of the cells, as `in_order` sorts them; in a sweep
        over masks those of the cells."""
        swept = "method" not in self.record.cells
        spec = map(str, () if swept else self.record.spec.get("methods") or ())
        return self.in_order([*spec, *map(str, self.frame["method"])])

    def in_order(self, methods: Sequence[str]) -> list[str]:
        """Sort methods: models as they are and plain training, adapters, then SPEFT in the order of
        the salience metrics.

        Args:
            methods: with repetitions or without.

        Returns:
            Each method once.
        """
        metrics = [*SALIENCE_METRICS]

        def place(method: str) -> tuple[int, int]:
            if not is_sparse(method):
                return (0 if method in REFERENCES else 1, 0)
            metric = self.masks(method).metric
            return (2, metrics.index(metric) if metric in metrics else len(metrics))

        return sorted(dict.fromkeys(methods), key=place)

    def is_trained(self, method: str) -> bool:
        """Tell whether a method has a training for each seed.

        Args:
            method: its name in the records.

        Returns:
            Whether it has.
        """
        facts = facts_of(variant_of(method).method)
        return facts is not None and facts.trains

    def label(self, method: str) -> str:
        """Name a method as the paper does: SPEFT by its salience metric. Settings that all of the
        study's sparse methods have, such as one density, are left out.

        Args:
            method: its name in the records.

        Returns:
            The name of its row.
        """
        if not is_sparse(method):
            variant = variant_of(method)
            return _with(speft_look(variant.method).label, variant.in_words)
        masks = self.masks(method)
        facts = SALIENCE_METRICS.get(masks.metric)
        own = [] if masks.scope == "global" else [f"scope {masks.scope}"]
        own += [f"refreshed every {masks.refresh_every} steps"] if masks.refresh_every else []
        all_others = [self.masks(one).others for one in self.methods if is_sparse(one)]
        own += [one for one in masks.others if not all(one in others for others in all_others)]
        return _with(facts.printed or facts.label if facts else masks.metric, own)

    def printed(self, method: str) -> str:
        """Find the row of the paper's tables for a method.

        Args:
            method: its name in the records.

        Returns:
            The row's name; empty of a variant that they do not have.
        """
        return printed_row(method, self._recorded(method))

    def masks(self, method: str) -> Masks:
        """Read how a method's masks are chosen.

        Args:
            method: SPEFT, with its settings or without.

        Returns:
            The settings of its label; those that the label leaves out as the study records them.
        """
        return masks_of(method, self._recorded(method))

    def _recorded(self, method: str) -> dict[str, Any]:
        return {name: self.setting(name, method) for name in _CHOICES}

    def setting(self, name: str, method: str) -> Any:
        """Look up a setting of a method's trainings.

        Args:
            name: as the records name it.
            method: its name in the records.

        Returns:
            The variant's value, else the method's or the one for all methods; None if there is
            none.
        """
        settings = self.record.spec.get("settings", {})
        for one in (method, variant_of(method).method):
            if name in settings.get(one, {}):
                return settings[one][name]
        return self.record.spec.get(name)


def load_speft(folders: Sequence[str | Path], kind: str) -> list[SpeftStudy]:
    """Read studies of one kind.

    Args:
        folders: of the studies.
        kind: `COMPARISON`, `MASK_SWEEP` or `DENSITY_SWEEP`.

    Returns:
        The studies, in the same order.

    Raises:
        RecordError: a folder has no study of this kind, no cell of it is finished, or two were
            measured on different data of the same name.
    """
    studies = []
    for folder in folders:
        record = load_finite(folder)
        if record.kind != kind:
            raise RecordError(f"{record.path}: no {kind} with finished cells")
        studies.append(SpeftStudy(record, _cells(record.path, shown_cells(record))))
    check_data(studies)
    return studies


def _cells(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The one reader of cells: a row for each method, seed and metric, whatever the kind."""
    if "method" not in frame:
        swept = zip(frame["scope"], frame["refresh_every"], strict=True)
        frame = frame.assign(method=[_swept_method(*setting) for setting in swept])
    if _RATE in frame:
        keys = [name for name in ("method", TRAINED_SHARE) if name in frame]
        if (frame.groupby(keys)[_RATE].nunique() > 1).any():
            raise RecordError(
                f"{path}: trained with several learning rates, none of them chosen; draw a study "
                "with one"
            )
    return frame


def _swept_method(scope: str, refresh_every: int) -> str:
    """The label of a cell in a sweep over masks, as a comparison would have it. A static mask has 0
    steps to the next."""
    return f"speft:scope={scope}" + (f":refresh-every={refresh_every}" if refresh_every else "")


def speft_look(method: str) -> Look:
    """How a method is called and drawn beside SPEFT, where a base is trained.

    Args:
        method: its name in records.

    Returns:
        Its look.
    """
    return look_of(method, on_base=True) or Look(method, "0.2", "x")


def _with(name: str, settings: Sequence[str]) -> str:
    return f"{name} ({', '.join(settings)})" if settings else name
