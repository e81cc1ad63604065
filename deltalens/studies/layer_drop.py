"""The sweep over layers without training: which blocks carry a fine-tune (as MFT's Figure 3 asks of
masks)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyFolder, StudyRecord, load_study
from deltalens.scoring.own_metrics import Metric
from deltalens.scoring.suite import read_suite
from deltalens.scoring.texts import FidelityTexts
from deltalens.studies import axes
from deltalens.studies.engine import StudyWatch, keep_better, read_weights
from deltalens.studies.layer_run import measure_layers
from deltalens.studies.layer_spec import LayersSpec, groups_taking_part
from deltalens.studies.paired import PairedModels

__all__ = ["KIND", "sweep_layers_drop"]

KIND = "layer-sweep"


def sweep_layers_drop(
    ft: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    groups: Sequence[int] = (1,),
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
    cache_gb: float = 4.0,
    jobs: int = 1,
    executor: str | None = None,
    fresh: bool = False,
    trust_remote_code: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """For each group of consecutive blocks, put its delta back (`drop`), and keep only its delta
    (`keep`); measure both, beside the fine-tune and the base themselves.

    What is in no block (embeddings, the last norm, the head) has its delta in `drop` and is the
    base's in `keep`. One model is loaded and edited in place, block by block, straight from the two
    checkpoints; at the end, and on any error, it has the fine-tune's bits back. Every finished cell
    is journalled: the same call again goes on where this one stopped, and one with other sizes of
    groups measures those as well.

    What a group's cell has in common with the model beside it, all blocks before the group, is not
    computed again: what enters the group is held for every batch, and the numbers are the same to
    the last bit. A model in which that cannot be done is evaluated in full; a note says why.

    Args:
        ft, base: checkpoint folders.
        out: the study's folder.
        groups: how many blocks are in a group; a pass over all blocks for each.
        data: files of rows (`read_rows`); without any, fidelity to the fine-tune is measured.
        metrics: keep only these of the metrics measured; empty: all.
        metric: a measurement of your own, instead of the built-in ones; nothing is held then.
        better: which way its metrics are better, as in `drop_study`.
        version: what your metric is called; another one whenever it measures something else.
            Without it the study knows the metric by its code and all that it refers to; where
            something of that cannot be compared with a later call's, the study cannot be gone on
            with.
        answer_pattern: regular expression that finds the answer in a longer text; then the model
            generates, and nothing is held.
        limit: rows taken of each data file.
        fields: what the data files call a field: {"prompt": "question"}.
        fidelity: the texts sampled when there is no data.
        device, dtype: where and how the model is loaded; `auto`: CUDA if there is one, and the
            checkpoint's dtype.
        batch_tokens: positions in a batch.
        include, exclude: regular expressions over tensor names; what does not take part is the
            fine-tune's in every cell.
        strict: refuse tensors that only one of the two has; else notes name them.
        cache_gb: how much host memory, in 10^9 bytes, what enters a group may take: positions of
            the data, times the hidden size, times the bytes of a number, once. Batches beyond run
            in full; 0: all of them.
        jobs: cells that are measured at once, each in a process with a model of its own; they share
            `cache_gb`. The numbers are the same.
        executor: where cells are measured, as in `drop_study`.
        fresh: discard what the folder holds of another study.
        trust_remote_code: run model code that the checkpoint brings.
        watch: told of stages, progress and finished cells.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch = watch or StudyWatch()
    if not (math.isfinite(cache_gb) and cache_gb >= 0):
        raise DeltaLensError(f"cache_gb {cache_gb}: 0 or more")
    suite = read_suite(
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
    )
    suite.check_names()
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
    spec = LayersSpec(
        suite=suite,
        sizes=tuple(sorted({*groups})),
        groups=groups_taking_part(pairing, sorted({*groups})),
        include=include,
        exclude=exclude,
    )
    read_weights(watch, pairing.ft, pairing.base)
    identity, columns = models.identity(spec.identity()), STUDIES["layer-sweep-drop"].columns
    grows = {"groups": axes.numbers}
    with StudyFolder.open(out, KIND, identity, columns, fresh, grows, suite.known.once) as folder:
        keep_better(folder, suite)
        sizes = tuple(folder.spec["groups"])
        spec = replace(spec, sizes=sizes, groups=groups_taking_part(pairing, sizes))
        cells = spec.cells()
        if len(folder.cells) < len(cells):
            cache_bytes = int(cache_gb * 1e9)
            measure_layers(spec, models, cache_bytes, folder, watch, jobs, executor)
        else:
            folder.write_finished(cells)
    return load_study(out)
