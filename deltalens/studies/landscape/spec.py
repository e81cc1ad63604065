"""What a landscape was asked for, checked before anything is loaded."""

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
from deltalens.scoring.loading import beside_each_other, free_memory, too_many_jobs
from deltalens.scoring.suite import Suite
from deltalens.studies.landscape.directions import NORMALIZATIONS
from deltalens.studies.landscape.grid import parse_grid, parse_range
from deltalens.studies.landscape.planes import PLANES

__all__ = ["ScanSpec", "check", "check_room", "pairings", "pick_plane", "steps_of"]

_OTHERS = {"checkpoints": 2, "line": 1, "random": 0, "hessian": 0}
_DEFAULT_GRID = {1: (51,), 2: (25, 25)}


@dataclass(frozen=True, kw_only=True)
class ScanSpec:
    """A landscape's arguments, checked."""

    plane: str
    counts: tuple[int, ...]
    ranges: tuple[tuple[float, float], ...] | None
    normalize: str
    seed: int
    suite: Suite
    loss: dict[str, Any] | None
    """What is known of a loss of the caller's."""
    include: str | None
    exclude: str | None

    def identity(self) -> dict[str, Any]:
        """Everything of it that decides the numbers."""
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
    """The kind of plane; `auto` goes by how many models are given.

    Raises:
        DeltaLensError: no such kind, or it does not go with so many models.
    """
    if plane == "auto":
        plane = {0: "random", 1: "line", 2: "checkpoints"}.get(others, "trajectory")
    if plane not in PLANES:
        raise DeltaLensError(f"plane {plane!r}: choose {', '.join(PLANES)}")
    wanted = _OTHERS.get(plane)
    if wanted is not None and others != wanted:
        shape = {0: "ORIGIN alone", 1: "ORIGIN and B", 2: "ORIGIN, B and C"}[wanted]
        raise DeltaLensError(f"--plane {plane} takes {shape}; {1 + others} models are given")
    if plane == "trajectory" and not others:
        raise DeltaLensError(
            "--plane trajectory takes ORIGIN, the last checkpoint, and then the earlier ones, or "
            "the folder that holds them as checkpoint-10, checkpoint-20, ..."
        )
    if base and plane in ("random", "hessian"):
        raise DeltaLensError(f"--plane {plane} goes through no other model: leave the base out")
    return plane


def pick_grid(plane: str, grid: str | int | Sequence[int] | None) -> tuple[int, ...]:
    """Points along each direction; 51 on a line and 25x25 on a plane if not asked otherwise.

    Raises:
        DeltaLensError: see `parse_grid`; or the number of directions is not the plane's.
    """
    if grid is None:
        return _DEFAULT_GRID[1 if plane == "line" else 2]
    counts = parse_grid(grid)
    if plane == "line" and len(counts) == 2:
        raise DeltaLensError(f"grid {grid!r}: a line has one direction; write --grid {counts[0]}")
    if plane == "checkpoints" and len(counts) == 1:
        raise DeltaLensError(
            f"grid {grid!r}: a plane has two directions; write --grid {counts[0]}x{counts[0]}"
        )
    return counts


def check(
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
    """All that can be checked without opening a model.

    Raises:
        DeltaLensError: bad input.
    """
    counts, ranges = pick_grid(plane, grid), parse_range(span)
    if ranges is not None and len(ranges) == 1:
        ranges *= len(counts)
    if ranges is not None and len(ranges) != len(counts):
        raise DeltaLensError(f"span {span!r}: {len(ranges)} ranges for {len(counts)} direction")
    if normalize not in NORMALIZATIONS:
        raise DeltaLensError(f"normalize {normalize!r}: choose {', '.join(NORMALIZATIONS)}")
    NameFilter(include, exclude)  # Refuses what is no regular expression.
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
    if not (suite.metric is not None or suite.installed or suite.files or suite.wants_fidelity):
        raise DeltaLensError(
            "a landscape needs data to measure the loss on: give --data, once or several times "
            "(or --metric kl, for the distance from ORIGIN's own predictions)"
        )
    suite.check_names()
    if plane == "hessian" and not (suite.files or loss):
        raise DeltaLensError(
            "--plane hessian differentiates the loss of the first data file: give --data (in "
            "Python: loss=...)"
        )
    return spec


def steps_of(others: Sequence[str | Path]) -> list[Path]:
    """The checkpoints of a trajectory: as given, or those in the one folder given, by their step.

    Raises:
        DeltaLensError: a folder without checkpoints.
    """
    paths = [Path(other) for other in others]
    if len(paths) != 1 or (paths[0] / "config.json").is_file():
        return paths
    found = [
        (int(match.group(1)), folder)
        for folder in (paths[0].iterdir() if paths[0].is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir()
    ]
    if not found:
        raise DeltaLensError(f"{paths[0]}: holds no checkpoint-10, checkpoint-20, ...")
    return [folder for _, folder in sorted(found)]


def pairings(
    origin: Checkpoint,
    others: Sequence[Path],
    include: str | None,
    exclude: str | None,
    strict: bool = False,
) -> list[Pairing]:
    """The origin matched with every other checkpoint.

    Raises:
        PairingError: what does not match, of all of them together.
    """
    found, faults = [], []
    for other in [open_checkpoint(path) for path in others]:
        try:
            found.append(pair(origin, other, include, exclude, strict))
        except PairingError as error:
            faults.append(error.args[0])
    if faults:
        raise PairingError(Lines(*faults))
    return found


def check_room(
    origin: Checkpoint, dtype: torch.dtype, device: torch.device, held: int, what: str, jobs: int
) -> None:
    """Refuse a scan that memory cannot hold, before the model is loaded.

    Args:
        origin: whose model is loaded.
        dtype, device: how and where.
        held: how many more times the model's size is held in fp32 (fp64 for an fp64 model).
        what: that is, in words.
        jobs: how many such models there are at once.

    Raises:
        DeltaLensError: with both figures and what to do.
    """
    entries = sum(prod(entry.shape) for entry in origin.tensors.values())
    width = 8 if dtype == torch.float64 else 4
    needed, there = entries * (dtype.itemsize + held * width), free_memory(device)
    beside = beside_each_other(device, jobs)
    if there is not None and needed <= there < beside * needed:
        raise DeltaLensError(too_many_jobs(origin, device, beside, needed, there))
    if there is not None and needed > there:
        raise DeltaLensError(
            f"{origin.path}: too large for {device}: the model, {what} take {needed / 1e9:.2f} GB "
            f"and there is {there / 1e9:.2f} GB. Add --low-memory, take a larger device (--device) "
            "or a smaller dtype (--dtype bfloat16)"
        )
