"""The drop study: how much of a fine-tune can be put back, and which part (GMT, Figure 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyFolder, StudyRecord, load_study
from deltalens.names import check_scope
from deltalens.numerics.rates import Rate, exact_rates
from deltalens.numerics.selection import STRATEGIES
from deltalens.scoring.own_metrics import Metric
from deltalens.scoring.suite import read_suite
from deltalens.scoring.texts import FidelityTexts
from deltalens.studies.axes import in_order
from deltalens.studies.drop_run import measure_drops
from deltalens.studies.drop_spec import GROWS, DropSpec
from deltalens.studies.engine import StudyWatch, keep_better, read_weights
from deltalens.studies.paired import PairedModels
from deltalens.studies.selecting import check_strategy

__all__ = ["drop_study"]

KIND = "drop-study"


def drop_study(
    ft: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    strategies: Sequence[str] = STRATEGIES,
    rates: str | Iterable[Rate] = "0:1:0.1",
    scope: str = "tensor",
    seeds: int = 3,
    rescale: bool = False,
    changed_only: bool = False,
    data: Sequence[str | Path] = (),
    metrics: Sequence[str] = (),
    metric: Metric | None = None,
    better: Mapping[str, str] | None = None,
    version: str | int | None = None,
    answer_pattern: str | None = None,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    fidelity: FidelityTexts = FidelityTexts(),
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int = 4096,
    include: str | None = None,
    exclude: str | None = None,
    strict: bool = False,
    jobs: int = 1,
    executor: str | None = None,
    fresh: bool = False,
    trust_remote_code: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Put back growing shares of a fine-tune's delta, and measure what is left of it.

    One model is loaded and edited in place for every cell, straight from the two checkpoints; at
    the end, and on any error, it has the fine-tune's bits back. Every finished cell is journalled:
    the same call again goes on where this one stopped, and one with more strategies, rates or seeds
    measures what is missing.

    Args:
        ft, base: checkpoint folders.
        out: the study's folder.
        strategies: which entries go first: `salient`, `trivial`, `random`.
        rates: drop rates, as "0:1:0.1" or as numbers; 0 (the fine-tune) and 1 (the base) are
            always among them.
        scope: what is ranked together: `tensor`, `layer` or `global`.
        seeds: how many random orders.
        rescale: divide what is kept by 1 - rate (DARE).
        changed_only: count rates over entries that differ from the base.
        data: files of rows (`read_rows`); without any, fidelity to the fine-tune is measured.
        metrics: keep only these of the metrics measured; empty: all.
        metric: a measurement of your own, instead of the built-in ones.
        better: which way its metrics are better, as `{"score": "higher"}` or `"lower"`; of one that
            is not named nothing is claimed that needs a direction. A later call may say it.
        version: what your metric is called; another one whenever it measures something else.
            Without it the study knows the metric by its code and all that it refers to; where
            something of that cannot be compared with a later call's, the study cannot be gone on
            with.
        answer_pattern: regular expression that finds the answer in a longer text; then the model
            generates.
        limit: rows taken of each data file.
        fields: what the data files call a field: {"prompt": "question"}.
        fidelity: the texts sampled when there is no data.
        device, dtype: where and how the model is loaded; `auto`: CUDA if there is one, and the
            checkpoint's dtype.
        batch_tokens: positions in a batch.
        include, exclude: regular expressions over tensor names.
        strict: refuse tensors that only one of the two has; else notes name them.
        jobs: cells that are measured at once, each in a process with a model of its own, on an
            accelerator of its own where there are several. The numbers are the same.
        executor: where cells are measured: `sequential`, `processes`, or one of an installed
            package; if not given, several processes where there are several jobs.
        fresh: discard what the folder holds of another study.
        trust_remote_code: run model code that the checkpoint brings.
        watch: told of stages, progress and finished cells.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch = watch or StudyWatch()
    if seeds < 1:
        raise DeltaLensError(f"seeds {seeds}: at least 1")
    spec = DropSpec(
        suite=read_suite(
            data=data,
            metrics=metrics,
            metric=metric,
            better=better,
            version=version,
            answer_pattern=answer_pattern,
            limit=limit,
            fields=fields,
            fidelity=fidelity,
            batch_tokens=batch_tokens,
        ),
        strategies=tuple(in_order([check_strategy(name) for name in strategies], STRATEGIES)),
        rates=tuple(sorted({Fraction(0), Fraction(1), *exact_rates(rates)})),
        scope=check_scope(scope),
        seeds=seeds,
        rescale=rescale,
        changed_only=changed_only,
        include=include,
        exclude=exclude,
    )
    if not spec.strategies:
        raise DeltaLensError(f"no strategy: choose from {', '.join(STRATEGIES)}")
    spec.suite.check_names()
    out = Path(out)
    models = PairedModels.read(
        ft,
        base,
        out,
        include=include,
        exclude=exclude,
        strict=strict,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        batch_tokens=batch_tokens,
        jobs=jobs,
        executor=executor,
    )
    pairing = models.pairing
    read_weights(watch, pairing.ft, pairing.base)
    identity, columns = models.identity(spec.identity()), STUDIES[KIND].columns
    once = spec.suite.known.once
    with StudyFolder.open(out, KIND, identity, columns, fresh, GROWS, once) as folder:
        keep_better(folder, spec.suite)
        spec = spec.grown(folder.spec)
        cells = spec.cells(bool(pairing.unpaired))
        if len(folder.cells) < len(cells):
            measure_drops(spec, models, folder, watch, jobs, executor)
        else:
            folder.write_finished(cells)
    return load_study(out)
