"""The mask-ratio sweep: the performance of methods over mask ratios (GMT, Figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from deltalens.catalog.methods import facts_of, has_ratio, method_name
from deltalens.errors import DeltaLensError
from deltalens.io.records import Setting, StudyRecord
from deltalens.numerics.rates import Rate, exact_rates, show_rate
from deltalens.studies import axes
from deltalens.studies.engine import HERE, StudyWatch
from deltalens.studies.executors import Execution
from deltalens.studies.training_plans import (
    Plan,
    TrainingData,
    cell_training,
    check_trainings,
    with_methods,
)
from deltalens.studies.trainings import run_trainings
from deltalens.training.methods import Method
from deltalens.training.methods.plain import Sft
from deltalens.training.spec import TrainingSpec

__all__ = ["KIND", "sweep_mask_ratio"]

KIND = "mask-ratio-sweep"
SWEPT = ("mask_ratio", "threshold")
"""Settings of methods that the study varies."""
_GRADIENT_RATIOS = "0:0.9:0.1,0.95,0.99"
"""Default ratios of methods that mask gradients (GMT, Figure 2)."""
_WEIGHT_RATIOS = "0.02,0.05,0.1,0.2,0.3,0.4"
"""Default ratios of methods that remove weights (MFT, Figure 4)."""


def sweep_mask_ratio(
    methods: Sequence[Method],
    source: TrainingData,
    out: str | Path,
    spec: TrainingSpec,
    *,
    mask_ratios: Rate | Iterable[Rate] | None = None,
    seeds: int = 3,
    learning_rates: Sequence[float] = (),
    keep_checkpoints: bool = False,
    execution: Execution = HERE,
    fresh: bool = False,
    watch: StudyWatch | None = None,
) -> StudyRecord:
    """Train at every mask ratio and seed, and measure the resulting models.

    Each cell is a training, except those of `one-off-drop`: they put the smallest deltas of a plain
    fine-tune back, with the mask ratio as drop rate. For methods that mask gradients, ratio 0 is
    plain fine-tuning, bit for bit, and is trained once. For methods that remove weights of a
    finished model, ratio 0 is that model as it is (`ft`). The same call resumes an interrupted
    study; a call with more methods, ratios or seeds measures what is missing.

    Args:
        methods: either `gmt`, `random-mask`, `one-off-drop` and `hft` (which has no ratio), with
            `sft` added; or `mft`, `random-mask-weights`, `l1-mask` and `sft`, with `ft` added.
        source: the model, and the data for training and evaluation.
        out: the study's folder.
        spec: the settings that all trainings share.
        mask_ratios: ratios in [0, 1), as "0:0.9:0.1,0.95" or as numbers; None: those of the papers.
        seeds: number of trainings at each ratio.
        learning_rates: a grid of peak learning rates, the same for every method: each training is
            made at each of them, and the loss on `source.choose_on` decides which is shown.
        keep_checkpoints: keep every trained model in the study's folder `checkpoints`.
        execution: by what the trainings are made. Those in several processes at the same time share
            the threads, and have each an accelerator if there are several.
        fresh: discard any other study in the folder.
        watch: told of stages, progress and finished cells.

    Returns:
        The study's records.

    Raises:
        DeltaLensError: bad input, as far as it can be detected before a model is loaded.
    """
    removing = any(_removes(method.name) for method in methods)
    if mask_ratios is None:
        mask_ratios = _WEIGHT_RATIOS if removing else _GRADIENT_RATIOS
    exact = sorted({Fraction(0), *exact_rates(mask_ratios)})
    if exact[-1] >= 1:
        raise DeltaLensError(f"mask_ratios {show_rate(exact[-1])}: must be in [0, 1)")
    with_reference = with_methods(["ft" if removing else "sft"], methods)
    swept = dict.fromkeys(SWEPT, "mask_ratios")
    return run_trainings(
        KIND,
        lambda study_spec: _plans(study_spec, spec, source),
        source,
        out,
        spec,
        methods=with_reference,
        settings=check_trainings(KIND, spec, with_reference, seeds, swept, learning_rates),
        seeds=seeds,
        extra_spec={"ratios": ([show_rate(ratio) for ratio in exact], axes.rates)},
        point_of=_point_of,
        requires=_requires,
        learning_rates=learning_rates,
        keep_checkpoints=keep_checkpoints,
        execution=execution,
        fresh=fresh,
        watch=watch,
    )


def _plans(
    study_spec: Mapping[str, Any], spec: TrainingSpec, source: TrainingData
) -> list[tuple[Setting, Plan]]:
    """The cells of a study's methods, ratios and seeds."""

    def plan(method: str, ratio: Fraction, seed: int) -> Plan:
        if method == "ft" or (_removes(method) and not ratio):
            return Plan(spec=spec, checkpoint=source.model)
        own = study_spec["settings"][method]
        if method_name(method) == "one-off-drop":
            return Plan(spec=spec.of(Sft(), seed), drop=show_rate(ratio), **own)
        if has_ratio(method):
            own = {**own, "mask_ratio": show_rate(ratio)}
        return Plan(spec=cell_training(spec, method, own, seed))

    ratios = [Fraction(ratio) for ratio in study_spec["ratios"]]
    return [
        (
            {"method": method, "mask_ratio": float(ratio), "seed": seed},
            plan(method, ratio, seed),
        )
        for method in study_spec["methods"]
        for ratio in (ratios if has_ratio(method) else [Fraction(0)])
        for seed in range(1 if method == "ft" else study_spec["seeds"])
    ]


def _point_of(setting: Setting, plan: Plan) -> str | None:
    """At mask ratio 0 nothing is masked: methods that mask gradients yield the plain fine-tune, and
    methods that remove weights yield the study's model as it is."""
    if setting["method"] == "ft" or _removes(setting["method"]):
        return "ft" if setting["mask_ratio"] == 0 else None
    plain = setting["mask_ratio"] == 0 and method_name(setting["method"]) != "hft"
    return _plain(setting, plan) if plain else None


def _requires(setting: Setting, plan: Plan) -> str | None:
    """A drop requires the plain fine-tune of the same seed."""
    return _plain(setting, plan) if plan.drop is not None else None


def _plain(setting: Setting, plan: Plan) -> str:
    return f"sft {setting['seed']} at {plan.rate}"


def _removes(method: str) -> bool:
    """Whether a method removes weights; False for an unknown name."""
    facts = facts_of(method)
    return facts is not None and facts.masks == "weights"
