"""The sweep over layers without training: which blocks a fine-tune depends on (the question that
MFT's Figure 3 answers for masks)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyFolder, StudyRecord, load_study
from deltalens.studies import axes
from deltalens.studies.engine import count_points, keep_better
from deltalens.studies.layer_run import measure_layers, point_of
from deltalens.studies.layer_spec import LayersSpec, groups_taking_part
from deltalens.studies.measuring import Measuring
from deltalens.studies.paired import PairedModels

__all__ = ["KIND", "sweep_layers_drop"]

KIND = "layer-sweep"


def sweep_layers_drop(
    ft: str | Path,
    base: str | Path,
    out: str | Path,
    measuring: Measuring,
    *,
    groups: Sequence[int] = (1,),
    cache_gb: float = 4.0,
) -> StudyRecord:
    """For each group of consecutive blocks, put its delta back (`drop`), and keep only its delta
    (`keep`). Measure both models, the fine-tune and the base.

    Tensors in no block (embeddings, the last norm, the head) are the fine-tune's in `drop` and the
    base's in `keep`; tensors that do not take part are the fine-tune's in every cell. One model is
    loaded, and edited in place, block by block, from the two checkpoints. At the end, also after an
    error, it has the fine-tune's bits again. Every finished cell is journalled: the same call
    resumes an interrupted study, and a call with other group sizes measures those as well.

    All blocks before a group are the same as in the fine-tune or the base itself, and are not
    computed again: the hidden states that enter the group are cached for every batch, and the
    numbers are the same, bit for bit. A custom metric, a text that is generated, or a model in
    which this is impossible is evaluated in full; a note says why.

    Args:
        ft, base: checkpoint folders.
        out: the study's folder.
        measuring: what is measured in each cell, on which tensors, and where.
        groups: blocks per group; every size divides the model anew.
        cache_gb: host memory for the cached states, in 10^9 bytes, shared by all jobs. All states
            take tokens of the data x hidden size x bytes per number. Batches that do not fit are
            computed in full; 0: all of them.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before the model is loaded.
    """
    if not (math.isfinite(cache_gb) and cache_gb >= 0):
        raise DeltaLensError(f"cache_gb {cache_gb}: must be 0 or more")
    suite = measuring.suite()
    suite.check_names()
    out = Path(out)
    models = PairedModels.read(ft, base, out, measuring)
    pairing = models.pairing
    spec = LayersSpec(
        suite=suite,
        sizes=tuple(sorted({*groups})),
        groups=groups_taking_part(pairing, sorted({*groups})),
        include=measuring.include,
        exclude=measuring.exclude,
    )
    models.announce(count_points(spec.cells(), point_of), suite, measuring)
    identity, columns = models.identity(spec.identity()), STUDIES["layer-sweep-drop"].columns
    grows = {"groups": axes.numbers}
    not_comparable = suite.metric_identity.not_comparable
    with StudyFolder.open(
        out, KIND, identity, columns, measuring.fresh, grows, not_comparable
    ) as folder:
        keep_better(folder, suite)
        sizes = tuple(folder.spec["groups"])
        spec = replace(spec, sizes=sizes, groups=groups_taking_part(pairing, sizes))
        cells = spec.cells()
        if len(folder.cells) < len(cells):
            measure_layers(spec, models, int(cache_gb * 1e9), folder, measuring)
        else:
            folder.write_finished(cells)
    return load_study(out)
