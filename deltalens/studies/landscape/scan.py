"""Scanning a landscape: the loss on a line or plane in weight space (MFT, Figures 6 and 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyFolder, StudyRecord, check_study_folder, load_study
from deltalens.scoring.code import identify
from deltalens.scoring.differentiable import LossPart
from deltalens.scoring.loading import check_fits, pick_device
from deltalens.scoring.own_metrics import Metric
from deltalens.scoring.suite import read_suite
from deltalens.scoring.texts import FidelityTexts
from deltalens.studies.engine import StudyWatch, keep_better, read_weights
from deltalens.studies.executors import find_executor
from deltalens.studies.landscape.grid import common_grid
from deltalens.studies.landscape.models import Given, HeldModels, StoredModels
from deltalens.studies.landscape.points import KIND, measure_points
from deltalens.studies.landscape.spec import check, check_room, pick_plane

__all__ = ["KIND", "scan_landscape"]


def scan_landscape(
    origin: str | Path | nn.Module,
    out: str | Path,
    *,
    others: Sequence[Given] = (),
    base: Given | None = None,
    plane: str = "auto",
    grid: str | int | Sequence[int] | None = None,
    span: str | None = None,
    normalize: str = "filter",
    seed: int = 0,
    data: Sequence[str | Path] = (),
    metrics: Sequence[str] = (),
    metric: Metric | None = None,
    better: Mapping[str, str] | None = None,
    loss: LossPart | None = None,
    version: str | int | None = None,
    answer_pattern: str | None = None,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    fidelity: FidelityTexts | None = None,
    low_memory: bool = False,
    jobs: int = 1,
    executor: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_tokens: int = 4096,
    include: str | None = None,
    exclude: str | None = None,
    strict: bool = False,
    fresh: bool = False,
    trust_remote_code: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Measure a model on the points of a line or plane through weight space.

    One live model is put on each point, `origin + a d1 + b d2`, computed anew in fp32 and rounded
    once to the model's dtype; at the end, and on any error, it has the origin's bits back. Points
    are visited from a coarse grid to the full one, the marked checkpoints first. Every finished
    point is journalled: the same call again goes on where this one stopped, and one for a grid that
    is twice as fine (or four times, ...) measures the points between.

    Args:
        origin: a checkpoint folder; or a model in memory, which then needs `metric`.
        out: the study's folder.
        others: B, C, ...: what spans the plane; folders, or models or state dicts in memory.
        base: a further model, projected onto the plane and marked.
        plane: `line` (through ORIGIN and B), `checkpoints` (through ORIGIN, B and C; distances in
            it are distances in weight space), `random` (ORIGIN alone), `trajectory` (principal
            components of ORIGIN, the last checkpoint, and the others), `hessian` (the top
            eigenvectors at ORIGIN); `auto` goes by how many are given.
        grid: points along each direction, "25x25"; one number for one direction.
        span: where the axes begin and end, "-1:1" or "-1:1,0:2"; if not given, around the marked
            points, -1 to 1 in random directions, and where a quadratic with the Hessian's largest
            eigenvalue has risen by one.
        normalize: of random directions: `filter`, `layer` or `model`.
        seed: of random directions, and of Lanczos' first vector.
        data: files of rows (`read_rows`), all measured at every point.
        metrics: keep only these of the metrics measured (`loss`, `perplexity`, `exact_match`;
            `kl`, `top1_agreement`: of texts that the origin writes); empty: all that data has.
        metric: a measurement of your own, instead; what it calls `train/loss` is the loss on train.
        better: which way its metrics are better, as in `drop_study`.
        loss: with it, for `hessian`: from the model to a scalar that can be differentiated twice.
        version: what your metric and loss are called; another one whenever one of them is something
            else. Without it the study knows them by their code and all that it refers to; where
            something of that cannot be compared with a later call's, the study cannot be gone on
            with.
        answer_pattern: regular expression that finds the answer in a longer text; then the model
            generates.
        limit: rows taken of each data file.
        fields: what the data files call a field: {"prompt": "question"}.
        fidelity: the texts that `kl` is measured on.
        low_memory: hold no direction; form each tensor's anew for every row and point. The numbers
            are the same.
        jobs: points that are measured at once, each in a process with a model of its own; with
            models in memory, one after the other. The numbers are the same.
        executor: where points are measured, as in `drop_study`.
        device, dtype: where and how the model is loaded; `auto`: CUDA if there is one, and fp32
            (fp64 for an fp64 checkpoint), since between two bf16 models most points are no bf16
            numbers.
        batch_tokens: positions in a batch.
        include, exclude: regular expressions over tensor names: what moves. All else stays as the
            origin has it; buffers always do.
        strict: refuse tensors that a checkpoint has and another lacks; else they are left as they
            are and said.
        fresh: discard what the folder holds of another study.
        trust_remote_code: run model code that the checkpoint brings.
        watch: told of stages, progress and finished cells.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.
    """
    watch, out = watch or StudyWatch(), Path(out)
    find_executor(executor, jobs)
    if isinstance(origin, nn.Module) and metric is None:
        raise DeltaLensError("a model in memory is measured by a metric of your own: metric=...")
    if isinstance(origin, nn.Module) and plane == "hessian" and loss is None:
        raise DeltaLensError("the Hessian of a model in memory needs a loss of your own: loss=...")
    of_loss = identify(loss, version)
    spec = check(
        plane=pick_plane(plane, len(others), base is not None),
        grid=grid,
        span=span,
        normalize=normalize,
        seed=seed,
        suite=read_suite(
            data=data,
            metrics=metrics,
            metric=metric,
            better=better,
            version=version,
            answer_pattern=answer_pattern,
            limit=limit,
            fields=fields,
            fidelity=fidelity or FidelityTexts(),
            batch_tokens=batch_tokens,
            by_data=True,
        ),
        loss=of_loss.spec,
        include=include,
        exclude=exclude,
    )
    models: HeldModels | StoredModels
    if isinstance(origin, nn.Module):
        models = HeldModels(origin, others, base, spec)
    else:
        models = StoredModels(
            origin, others, base, spec, pick_device(device), dtype, trust_remote_code, strict
        )
        check_fits(models.origin, models.kind, models.device, batch_tokens, jobs)
        held = 1 if low_memory else 1 + len(spec.counts)
        words = "a row" if low_memory else "a row and the directions in fp32"
        check_room(models.origin, models.kind, models.device, held, words, jobs)
    check_study_folder(out, models.paths)
    read_weights(watch, *models.checkpoints)
    identity = {
        **models.identity(),
        **spec.identity(),
        "trust_remote_code": trust_remote_code,
    }
    once = spec.suite.known.once or of_loss.once or (models.once if version is None else None)
    columns, grows = STUDIES[KIND].columns, {"grid": common_grid}
    with StudyFolder.open(out, KIND, identity, columns, fresh, grows, once) as folder:
        spec = replace(spec, counts=tuple(folder.spec["grid"]))
        if not folder.cells:
            known = folder.facts.get("plane")
            folder.facts = models.facts() | ({"plane": known} if known else {})
        keep_better(folder, spec.suite)
        measure_points(
            spec,
            models,
            folder,
            watch,
            loss=loss,
            low_memory=low_memory,
            jobs=jobs,
            executor=executor,
        )
    return load_study(out)
