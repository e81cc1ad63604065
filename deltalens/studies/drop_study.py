"""The drop study: how much of a delta can be put back, and which part (GMT, Figure 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyFolder, StudyRecord, load_study
from deltalens.names import check_scope
from deltalens.numerics.rates import Rate, exact_rates
from deltalens.numerics.selection import STRATEGIES
from deltalens.studies.axes import in_order
from deltalens.studies.drop_run import measure_drops, point_of
from deltalens.studies.drop_spec import GROWS, DropSpec
from deltalens.studies.engine import count_points, keep_better
from deltalens.studies.measuring import Measuring
from deltalens.studies.paired import PairedModels
from deltalens.studies.selecting import check_strategy

__all__ = ["drop_study"]

KIND = "drop-study"


def drop_study(
    ft: str | Path,
    base: str | Path,
    out: str | Path,
    measuring: Measuring,
    *,
    strategies: Sequence[str] = STRATEGIES,
    rates: Rate | Iterable[Rate] = "0:1:0.1",
    scope: str = "tensor",
    seeds: int = 3,
    rescale: bool = False,
    changed_only: bool = False,
) -> StudyRecord:
    """Put growing shares of a fine-tune's delta back to the base, and measure the resulting models.

    One model is loaded, and edited in place for every cell, from the two checkpoints. At the end,
    also after an error, it has the fine-tune's bits again. Every finished cell is journalled: the
    same call resumes an interrupted study, and a call with more strategies, rates or seeds measures
    what is missing.

    Args:
        ft, base: checkpoint folders.
        out: the study's folder.
        measuring: what is measured in each cell, on which tensors, and where.
        strategies: which entries are put back first: `salient`, `trivial`, `random`.
        rates: drop rates, as "0:1:0.1" or as numbers; 0 (the fine-tune) and 1 (the base) are added.
        scope: what is ranked together: `tensor`, `layer` or `global`.
        seeds: number of random orders.
        rescale: divide the remaining deltas by 1 - rate (DARE).
        changed_only: apply rates to the entries whose delta is not 0.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before the model is loaded.
    """
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: must be at least 1")
    spec = DropSpec(
        suite=measuring.suite(),
        strategies=tuple(in_order([check_strategy(name) for name in strategies], STRATEGIES)),
        rates=tuple(sorted({Fraction(0), Fraction(1), *exact_rates(rates)})),
        scope=check_scope(scope),
        seeds=seeds,
        rescale=rescale,
        changed_only=changed_only,
        include=measuring.include,
        exclude=measuring.exclude,
    )
    if not spec.strategies:
        raise DeltaLensError(f"no strategy: choose from {', '.join(STRATEGIES)}")
    spec.suite.check_names()
    out = Path(out)
    models = PairedModels.read(ft, base, out, measuring)
    unpaired = bool(models.pairing.unpaired)
    models.announce(count_points(spec.cells(unpaired), point_of), spec.suite, measuring)
    identity, columns = models.identity(spec.identity()), STUDIES[KIND].columns
    not_comparable = spec.suite.metric_identity.not_comparable
    with StudyFolder.open(
        out, KIND, identity, columns, measuring.fresh, GROWS, not_comparable
    ) as folder:
        keep_better(folder, spec.suite)
        spec = spec.grown(folder.spec)
        cells = spec.cells(unpaired)
        if len(folder.cells) < len(cells):
            measure_drops(spec, models, folder, measuring)
        else:
            folder.write_finished(cells)
    return load_study(out)
