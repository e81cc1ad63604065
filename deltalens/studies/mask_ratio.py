"""The mask-ratio sweep: what a method reaches at growing mask ratios (GMT, Figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import METHODS, has_ratio
from deltalens.errors import DeltaLensError
from deltalens.io.records import Setting, StudyRecord
from deltalens.numerics.rates import Rate, exact_rates, show_rate
from deltalens.studies import axes
from deltalens.studies.engine import StudyWatch
from deltalens.studies.training_plans import Plan, TrainingData, check_trainings
from deltalens.studies.trainings import run_trainings
from deltalens.training.spec import TrainingSpec

__all__ = ["KIND", "sweep_mask_ratio"]

KIND = "mask-ratio-sweep"
SWEPT = ("mask_ratio", "threshold")
"""Options of a method that the study goes through."""
_GRADIENTS, _WEIGHTS = "0:0.9:0.1,0.95,0.99", "0.02,0.05,0.1,0.2,0.3,0.4"
"""What is asked for by default: of masked gradients (GMT, Figure 2), and of removed weights (MFT,
Figure 4)."""


def sweep_mask_ratio(
    methods: Sequence[str],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    ratios: str | Iterable[Rate] | None = None,
    seeds: int = 3,
    keep_checkpoints: bool = False,
    jobs: int = 1,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Train at every mask ratio and seed, beside plain fine-tuning, and measure what comes out.

    A cell is a training; of `one-off-drop` it is a drop of the smallest deltas of the plain
    fine-tune (at the mask ratio as drop rate). Ratio 0 is plain fine-tuning to the last bit, and is
    trained once. Of methods that remove weights of a finished model, ratio 0 is that model as it
    is (`ft`). The same call again goes on where this one stopped; one with more methods, ratios or
    seeds measures what is missing.

    Args:
        methods: `gmt`, `random-mask`, `one-off-drop`; and `hft`, which knows no ratio; or `mft`,
            `random-mask-weights`, `l1-mask`, and `sft`. Beside the former plain fine-tuning (`sft`)
            always stands, beside the latter the model as it is (`ft`).
        source: the model, what it learns, and what is measured after each training.
        out: the study's folder.
        spec: the training's settings; its method, mask ratio and seed are the cell's.
        ratios: mask ratios, as "0:0.9:0.1,0.95" or as numbers; those of the papers if not given.
        seeds: how many trainings at each ratio.
        keep_checkpoints: keep every trained model in the study's `checkpoints`.
        jobs: trainings at once, each in a process of its own with its share of the threads, on an
            accelerator of its own where there are several.
        fresh: discard what the folder holds of another study.
        watch: told of stages, progress and finished cells.

    Raises:
        DeltaLensError: bad input, as far as it can be known before a model is loaded.
    """
    removing = any(_removes(method) for method in methods)
    if ratios is None:
        ratios = _WEIGHTS if removing else _GRADIENTS
    exact = sorted({Fraction(0), *exact_rates(ratios)})
    if exact[-1] >= 1:
        raise DeltaLensError(f"mask ratio {show_rate(exact[-1])}: in [0, 1)")
    with_reference = ("ft" if removing else "sft", *methods)
    swept = dict.fromkeys(SWEPT, "ratios")
    return run_trainings(
        KIND,
        lambda wanted: _plans(wanted, spec, source),
        source,
        out,
        spec,
        settings=check_trainings(KIND, spec, with_reference, seeds, swept),
        seeds=seeds,
        along={"ratios": ([show_rate(ratio) for ratio in exact], axes.rates)},
        same=_same_point,
        after=_ground,
        keep_checkpoints=keep_checkpoints,
        jobs=jobs,
        fresh=fresh,
        watch=watch,
    )


def _plans(
    wanted: Mapping[str, Any], spec: TrainingSpec, source: TrainingData
) -> list[tuple[Setting, Plan]]:
    """The cells of what was asked: methods, their settings, ratios and seeds."""

    def plan(method: str, ratio: Fraction, seed: int) -> Plan:
        if method == "ft" or (_removes(method) and not ratio):
            return Plan(spec=spec, still=source.model)
        own = wanted["settings"][method]
        if method == "one-off-drop":
            return Plan(spec=spec.of("sft", seed=seed), drop=show_rate(ratio), **own)
        if has_ratio(method):
            own = {**own, "mask_ratio": show_rate(ratio)}
        return Plan(spec=spec.of(method, seed=seed, **own))

    ratios = [Fraction(ratio) for ratio in wanted["ratios"]]
    return [
        (
            {"method": method, "mask_ratio": float(ratio), "seed": seed},
            plan(method, ratio, seed),
        )
        for method in wanted["methods"]
        for ratio in (ratios if has_ratio(method) else [Fraction(0)])
        for seed in range(1 if method == "ft" else wanted["seeds"])
    ]


def _same_point(setting: Setting) -> str | None:
    """At mask ratio 0 nothing is masked: plain fine-tuning whatever the method, or the model as it
    is where weights are removed."""
    if setting["method"] == "ft" or _removes(setting["method"]):
        return "ft" if setting["mask_ratio"] == 0 else None
    plain = setting["mask_ratio"] == 0 and setting["method"] != "hft"
    return f"sft {setting['seed']}" if plain else None


def _ground(setting: Setting) -> str | None:
    """A drop takes the plain fine-tune with its seed."""
    return f"sft {setting['seed']}" if setting["method"] == "one-off-drop" else None


def _removes(method: str) -> bool:
    """Whether a method, which may be unknown, removes weights."""
    return method in METHODS and METHODS[method].masks == "weights"
