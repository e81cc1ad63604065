"""The specification of a landscape scan: its arguments, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from deltalens.errors import DeltaLensError, Lines, PairingError
from deltalens.io.checkpoint import Checkpoint, open_checkpoint
from deltalens.io.matching import pair
from deltalens.io.pairing import Pairing
from deltalens.names import NameFilter
from deltalens.scoring.memory import free_memory, models_per_device, too_many_jobs
from deltalens.scoring.suite import Suite
from deltalens.studies.landscape.directions import NORMALIZATIONS
from deltalens.studies.landscape.grid import parse_grid, parse_range
from deltalens.studies.landscape.planes import PLANES

__all__ = ["ScanSpec", "check_room", "pairings", "pick_plane", "scan_spec", "steps_of"]

_OTHERS = {"checkpoints": 2, "line": 1, "random": 0, "hessian": 0}
"""Kind of plane -> the number of models beside the origin."""
_DEFAULT_GRID = {1: (51,), 2: (25, 25)}


@dataclass(frozen=True, kw_only=True)
class ScanSpec:
    """The specification of a landscape scan, checked."""

    plane: str
    counts: tuple[int, ...]
    """Points along each axis."""
    ranges: tuple[tuple[float, float], ...] | None
    """(low, high) of each axis; None: the defaults of the plane."""
    normalize: str
    seed: int
    suite: Suite
    """What is measured at each point."""
    loss: dict[str, Any] | None
    """Identity of the caller's loss; None: there is none."""
    include: str | None
    exclude: str | None

    def identity(self) -> dict[str, Any]:
        """Collect everything in the specification that decides the numbers.

        Returns:
            JSON values by name.
        """
        return {
            "plane": self.plane,
            "grid": list(self.counts),
            "range": [list(ends) for ends in self.ranges] if self.ranges else None,
            "normalise": self.normalize if self.plane == "random" else None,
            "seed": self.seed,
            **self.suite.identity(),
            "loss": self.loss,
            "include": self.include,
            "exclude": self.exclude,
        }


def pick_plane(plane: str, others: int, base: bool) -> str:
    """Choose the kind of plane.

    Args:
        plane: a kind; `auto`: the kind for this number of models.
        others: number of models beside the origin.
        base: whether a base is to be marked.

    Returns:
        The kind.

    Raises:
        DeltaLensError: there is no such kind, or it requires another number of models.
    """
    if plane == "auto":
        plane = {0: "random", 1: "line", 2: "checkpoints"}.get(others, "trajectory")
    if plane not in PLANES:
        raise DeltaLensError(f"plane {plane!r}: choose from {', '.join(PLANES)}")
    required = _OTHERS.get(plane)
    if required is not None and others != required:
        models = {0: "ORIGIN alone", 1: "ORIGIN and B", 2: "ORIGIN, B and C"}[required]
        raise DeltaLensError(f"plane {plane} takes {models}; {1 + others} models are given")
    if plane == "trajectory" and not others:
        raise DeltaLensError(
            "plane trajectory takes the last checkpoint as ORIGIN, and the earlier ones after it, "
            "or the folder that contains them as checkpoint-10, checkpoint-20, ..."
        )
    if base and plane in ("random", "hessian"):
        raise DeltaLensError(f"plane {plane} contains no other model: leave `base` out")
    return plane


def pick_grid(plane: str, grid: str | int | Sequence[int] | None) -> tuple[int, ...]:
    """Choose the number of points along each direction.

    Args:
        plane: the kind of plane.
        grid: as `parse_grid` takes it; None: 51 on a line, 25 x 25 on a plane.

    Returns:
        One number per direction.

    Raises:
        DeltaLensError: see `parse_grid`; or the plane has another number of directions.
    """
    if grid is None:
        return _DEFAULT_GRID[1 if plane == "line" else 2]
    counts = parse_grid(grid)
    if plane == "line" and len(counts) == 2:
        raise DeltaLensError(f"grid {grid!r}: a line has one direction; give grid {counts[0]}")
    if plane == "checkpoints" and len(counts) == 1:
        raise DeltaLensError(
            f"grid {grid!r}: a plane has two directions; give grid {counts[0]}x{counts[0]}"
        )
    return counts


def scan_spec(
    *,
    plane: str,
    grid: str | int | Sequence[int] | None,
    span: str | None,
    normalize: str,
    seed: int,
    suite: Suite,
    loss: dict[str, Any] | None,
    include: str | None,
    exclude: str | None,
) -> ScanSpec:
    """Check the arguments of a scan, as far as that is possible without opening a model.

    Args:
        plane: the kind of plane (`pick_plane`).
        grid: points along each direction (`parse_grid`); None: the default.
        span: ends of the axes (`parse_range`); None: the defaults of the plane.
        normalize: of random directions.
        seed: of random directions, and of the initial vector of the Lanczos iteration.
        suite: what is measured at each point.
        loss: identity of the caller's loss; None: there is none.
        include, exclude: regular expressions over tensor names.

    Returns:
        The specification.

    Raises:
        DeltaLensError: bad input.
    """
    counts, ranges = pick_grid(plane, grid), parse_range(span)
    if ranges is not None and len(ranges) == 1:
        ranges *= len(counts)
    if ranges is not None and len(ranges) != len(counts):
        raise DeltaLensError(f"span {span!r}: {len(ranges)} ranges, but {len(counts)} direction")
    if normalize not in NORMALIZATIONS:
        raise DeltaLensError(f"normalize {normalize!r}: choose from {', '.join(NORMALIZATIONS)}")
    NameFilter(include, exclude)  # Raises if one is not a regular expression.
    spec = ScanSpec(
        plane=plane,
        counts=counts,
        ranges=ranges,
        normalize=normalize,
        seed=seed,
        suite=suite,
        loss=loss,
        include=include,
        exclude=exclude,
    )
    measured = suite.files or suite.installed or suite.tasks or suite.wants_fidelity
    if suite.metric is None and not measured:
        raise DeltaLensError(
            "a landscape needs `data` to measure the loss on, or `tasks` (or `metrics` kl, for the "
            "distance from the predictions of ORIGIN)"
        )
    suite.check_names()
    if plane == "hessian" and not (suite.files or loss):
        raise DeltaLensError(
            "plane hessian differentiates the loss on the first file of `data`: give `data`, or in "
            "Python a `loss`"
        )
    return spec


def steps_of(others: Sequence[str | Path]) -> list[Path]:
    """List the checkpoints of a trajectory.

    Args:
        others: the checkpoints; or a single folder that contains them as `checkpoint-STEP`.

    Returns:
        The checkpoints; those of a folder by ascending step.

    Raises:
        DeltaLensError: the folder contains no checkpoint.
    """
    paths = [Path(other) for other in others]
    if len(paths) != 1 or (paths[0] / "config.json").is_file():
        return paths
    by_step = [
        (int(match.group(1)), folder)
        for folder in (paths[0].iterdir() if paths[0].is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir()
    ]
    if not by_step:
        raise DeltaLensError(f"{paths[0]}: contains no checkpoint-10, checkpoint-20, ...")
    return [folder for _, folder in sorted(by_step)]


def pairings(
    origin: Checkpoint,
    others: Sequence[Path],
    include: str | None,
    exclude: str | None,
    strict: bool = False,
) -> list[Pairing]:
    """Pair the origin with every other checkpoint.

    Args:
        origin: the model in question.
        others: the other checkpoints.
        include, exclude, strict: as `pair` takes them.

    Returns:
        The pairings, in the order of `others`.

    Raises:
        PairingError: checkpoints do not match; lists all mismatches of all of them.
    """
    matched, faults = [], []
    for other in [open_checkpoint(path) for path in others]:
        try:
            matched.append(pair(origin, other, include, exclude, strict))
        except PairingError as error:
            faults.append(error.args[0])
    if faults:
        raise PairingError(Lines(*faults))
    return matched


def check_room(
    origin: Checkpoint, dtype: torch.dtype, device: torch.device, copies: int, what: str, jobs: int
) -> None:
    """Refuse a scan that does not fit into memory, before the model is loaded.

    Args:
        origin: the checkpoint that is loaded.
        dtype, device: how and where it is loaded.
        copies: how many times the size of the model is held besides it, in fp32 (fp64 for an fp64
            model).
        what: what these are, in words.
        jobs: workers at the same time.

    Raises:
        DeltaLensError: it does not fit; states the bytes required and free, and what to do.
    """
    entries = sum(prod(entry.shape) for entry in origin.tensors.values())
    width = 8 if dtype == torch.float64 else 4
    needed, free = entries * (dtype.itemsize + copies * width), free_memory(device)
    workers = models_per_device(device, jobs)
    if free is not None and needed <= free < workers * needed:
        raise DeltaLensError(too_many_jobs(origin, device, workers, needed, free))
    if free is not None and needed > free:
        raise DeltaLensError(
            f"{origin.path}: too large for {device}: the model and {what} need "
            f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free. Set `low_memory`, or use a "
            "larger `device` or a smaller `dtype` (bfloat16)"
        )
