"""Scans of loss landscapes: the loss on a line or plane in weight space (MFT, Figures 6 and 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from deltalens.catalog.studies import STUDIES
from deltalens.errors import DeltaLensError
from deltalens.io.records import StudyFolder, StudyRecord, check_study_folder, load_study
from deltalens.scoring.code import identify
from deltalens.scoring.differentiable import LossPart
from deltalens.scoring.loading import pick_device
from deltalens.scoring.planning import plan_measuring
from deltalens.studies.engine import keep_better, read_weights
from deltalens.studies.landscape.grid import common_grid
from deltalens.studies.landscape.models import HeldModels, ModelSource, StoredModels
from deltalens.studies.landscape.points import KIND, measure_points
from deltalens.studies.landscape.spec import ScanSpec, check_room, pick_plane, scan_spec
from deltalens.studies.measuring import Measuring

__all__ = ["KIND", "scan_landscape"]


def scan_landscape(
    origin: str | Path | nn.Module,
    out: str | Path,
    measuring: Measuring,
    *,
    others: Sequence[ModelSource] = (),
    base: ModelSource | None = None,
    plane: str = "auto",
    grid: str | int | Sequence[int] | None = None,
    span: str | None = None,
    normalize: str = "filter",
    seed: int = 0,
    loss: LossPart | None = None,
    low_memory: bool = False,
) -> StudyRecord:
    """Measure a model at the points of a line or plane through weight space.

    One live model is moved from point to point. Each point, `origin + a d1 + b d2`, is computed
    from the origin in fp32 and rounded once to the model's dtype. At the end, also after an error,
    the model has the origin's bits again. The positions of the models are measured first, then the
    grid from coarse to fine. Every finished point is journalled: the same call resumes an
    interrupted scan, and a call with a grid of twice as many intervals (or four times, ...)
    measures the points between.

    Args:
        origin: a checkpoint folder; or a model in memory, which requires a custom metric.
        out: the study's folder.
        measuring: what is measured at each point, which tensors move, and where. Tensors that do
            not move, and buffers, are the origin's everywhere. Models in memory are measured in
            this process only.
        others: B, C, ...: the models that span the plane with the origin; folders, or models or
            state dicts in memory.
        base: a further model, which is projected onto the plane and marked.
        plane: `line` (through ORIGIN and B), `checkpoints` (through ORIGIN, B and C; distances in
            the plane are distances in weight space), `random` (ORIGIN alone), `trajectory`
            (principal components of ORIGIN, the last checkpoint, and the others), `hessian` (top
            eigenvectors at ORIGIN); `auto`: the kind for this number of models.
        grid: points along each direction: "25x25" for a plane, 51 for a line; None: these.
        span: ends of the axes: "-1:1" or "-1:1,0:2". None: around the models; for random directions
            -1 to 1; for `hessian`, up to where a quadratic with the largest eigenvalue has risen by
            1.
        normalize: scale of random directions: `filter`, `layer` or `model` (`RandomDirection`).
        seed: of random directions, and of the initial vector of the Lanczos iteration.
        loss: for `hessian` with a custom metric: model -> scalar that can be differentiated twice.
        low_memory: compute directions again for every row and point, instead of holding them. The
            numbers are the same.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before the model is loaded.
    """
    out = Path(out)
    if isinstance(origin, nn.Module) and measuring.metric is None:
        raise DeltaLensError("a model in memory requires a metric of your own: give `metric`")
    if isinstance(origin, nn.Module) and plane == "hessian" and loss is None:
        raise DeltaLensError(
            "the Hessian of a model in memory requires a loss of your own: give `loss`"
        )
    if measuring.device_map is not None:
        _check_spread(origin, plane)
    loss_identity = identify(loss, measuring.version)
    spec = scan_spec(
        plane=pick_plane(plane, len(others), base is not None),
        grid=grid,
        span=span,
        normalize=normalize,
        seed=seed,
        suite=measuring.suite(by_data=True),
        loss=loss_identity.spec,
        include=measuring.include,
        exclude=measuring.exclude,
    )
    models = _models(origin, others, base, spec, measuring, low_memory)
    measuring.execution.check(models.device)
    check_study_folder(out, models.paths)
    _announce(models, spec, measuring)
    identity = {
        **models.identity(),
        **spec.identity(),
        "trust_remote_code": measuring.trust_remote_code,
    }
    not_comparable = (
        spec.suite.metric_identity.not_comparable
        or loss_identity.not_comparable
        or (models.not_comparable if measuring.version is None else None)
    )
    columns, grows = STUDIES[KIND].columns, {"grid": common_grid}
    with StudyFolder.open(
        out, KIND, identity, columns, measuring.fresh, grows, not_comparable
    ) as folder:
        spec = replace(spec, counts=tuple(folder.spec["grid"]))
        if not folder.cells:
            recorded_plane = folder.facts.get("plane")
            folder.facts = models.facts()
            if recorded_plane:
                folder.facts["plane"] = recorded_plane
        keep_better(folder, spec.suite)
        measure_points(spec, models, folder, measuring, loss=loss, low_memory=low_memory)
    return load_study(out)


def _check_spread(origin: str | Path | nn.Module, plane: str) -> None:
    """Refuse what a device map cannot be used for."""
    if isinstance(origin, nn.Module):
        raise DeltaLensError("a model in memory is where it is: give no device_map")
    if plane == "hessian":
        raise DeltaLensError(
            "plane hessian and device_map: products with the Hessian take a model on one device, "
            "with all of its weights there; name a `device` that holds it"
        )


def _models(
    origin: str | Path | nn.Module,
    others: Sequence[ModelSource],
    base: ModelSource | None,
    spec: ScanSpec,
    measuring: Measuring,
    low_memory: bool,
) -> HeldModels | StoredModels:
    """Match the models; check that those in folders fit into memory."""
    if isinstance(origin, nn.Module):
        return HeldModels(origin, others, base, spec)
    models = StoredModels(
        origin,
        others,
        base,
        spec,
        pick_device(measuring.device),
        measuring.dtype,
        measuring.trust_remote_code,
        measuring.strict,
        measuring.device_map,
    )
    at_once = measuring.execution.models_here
    models.loading.check_fits(models.origin, measuring.batch_tokens, at_once)
    if measuring.device_map is not None:
        return models
    copies = 1 if low_memory else 1 + len(spec.counts)
    what = "a row" if low_memory else "a row and the directions in fp32"
    check_room(models.origin, models.kind, models.device, copies, what, at_once)
    return models


def _announce(models: HeldModels | StoredModels, spec: ScanSpec, measuring: Measuring) -> None:
    """Report what the scan requires, and compute the fingerprints for its identity."""
    watch, suite = measuring.watch, spec.suite
    if watch.on_plan is not None and isinstance(models, StoredModels):
        plan = plan_measuring(
            "points",
            math.prod(spec.counts),
            models.checkpoints,
            suite.files,
            models.kind,
            models.device,
            measuring.execution.jobs,
            suite.fidelity.sequences * suite.fidelity.new_tokens,
            suite.task_tokens,
        )
        watch.on_plan(plan)
    read_weights(watch, *models.checkpoints)
