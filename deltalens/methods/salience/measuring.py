"""Measure how much each weight matters: the metrics in as few passes as they can share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args, overload

import torch
from torch import Tensor, nn

from deltalens.catalog.salience import (
    EXPECTATIONS,
    SALIENCE_METRICS,
    Expectation,
    SalienceMetric,
    check_metrics,
)
from deltalens.errors import DeltaLensError, fault_list
from deltalens.methods.mask_layers import Layer
from deltalens.methods.salience.calibration import (
    Batch,
    Calibration,
    Loss,
    PassWatch,
    example_count,
    first_batches,
)
from deltalens.methods.salience.passes import HessianWay, PassOptions, scores_by_metric
from deltalens.methods.salience.preserved import preserved
from deltalens.methods.salience.scores import Salience
from deltalens.methods.salience.targets import Targets, choose_targets

__all__ = ["each_salience", "salience", "seconds_of_pass"]


@overload
def salience(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: SalienceMetric,
    *,
    targets: Targets = "attention",
    steps: int = 64,
    expectation: Expectation | None = None,
    sign: Literal[1, -1] = 1,
    hessian: HessianWay = "exact",
    loss: Loss | None = None,
    seed: int = 0,
) -> Salience: ...


@overload
def salience(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: list[str] | tuple[str, ...] | Literal["all"],
    *,
    targets: Targets = "attention",
    steps: int = 64,
    expectation: Expectation | None = None,
    sign: Literal[1, -1] = 1,
    hessian: HessianWay = "exact",
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, Salience]: ...


@overload
def salience(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: str | Sequence[str],
    *,
    targets: Targets = "attention",
    steps: int = 64,
    expectation: Expectation | None = None,
    sign: Literal[1, -1] = 1,
    hessian: HessianWay = "exact",
    loss: Loss | None = None,
    seed: int = 0,
) -> Salience | dict[str, Salience]: ...


def salience(
    model: nn.Module,
    batches: Iterable[Batch],
    metric: str | Sequence[str],
    *,
    targets: Targets = "attention",
    steps: int = 64,
    expectation: Expectation | None = None,
    sign: Literal[1, -1] = 1,
    hessian: HessianWay = "exact",
    loss: Loss | None = None,
    seed: int = 0,
) -> Salience | dict[str, Salience]:
    """Measure how much each weight of some layers matters (SPEFT, Sec. 3.2).

    The metrics, where g is the gradient of the loss, theta the weight and E the mean over batches:
    `magnitude` |theta|, `gradient` |E g|, `snip` |E g * theta|, `force` -E g * theta, `taylor-fo`
    (E g * theta)^2, `synflow` (see `deltalens.methods.salience.synflow`), `grasp` -(H E g) * theta
    with the Hessian H of the scored weights, `fisher` E g^2 over single examples, and `random`.
    FORCE and GRaSP rank signed values, all others magnitudes.

    Dropout is off. The model, its gradients and buffers, its modes and the random state are
    afterwards as before. Metrics that take gradients share one pass over the batches.

    Args:
        model: a model; its weights in fp16, bf16, fp32 or fp64. Sums are kept in fp32, or in fp64
            if the weights are.
        batches: mappings from names to tensors, as the model takes them, labels among them. At most
            `steps` are read, and held meanwhile.
        metric: a metric's name; or several, or `all`.
        targets: whose weights are scored: `attention`, `linear` (every linear layer in a block), or
            names of layers or the ends of their names.
        steps: the number of batches. The paper takes 64 of 16 examples.
        expectation: `inside` (the default, as the public code) takes a metric of the mean gradient;
            `outside` (as the paper's words) takes the mean over batches of the metric. Metrics
            without data have no choice; Fisher's mean is over single examples with either.
        sign: GRaSP's: 1 keeps the top of -(H g) * theta, -1 that of its opposite.
        hessian: for GRaSP: `exact` differentiates twice; `difference` takes the gradients at two
            points, is faster, needs fp32 and holds another copy of the scored weights.
        loss: computes the loss of a model and a batch; None: what the model returns as `loss`.
        seed: seed of `random`.

    Returns:
        The salience of the metric; with several metrics, metric -> salience.

    Raises:
        DeltaLensError: an argument is invalid, no layer matches, a loss has no gradient, or a score
            is not finite.

    Example:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> ids = torch.arange(24).view(2, 12)
        >>> batches = [{"input_ids": ids, "labels": ids}]
        >>> found = deltalens.salience(model, batches, "gradient", steps=1)
        >>> found.steps, found.examples
        (1, 2)
        >>> kept = found.indices(0.005)  # of all attention weights, ranked together
        >>> sum(map(len, kept.values())) == round(0.005 * found.entries)
        True
    """
    names = check_metrics(metric)
    found = {
        each.metric: each
        for each in each_salience(
            model,
            batches,
            names,
            targets=targets,
            steps=steps,
            expectation=expectation,
            sign=sign,
            hessian=hessian,
            loss=loss,
            seed=seed,
        )
    }
    if isinstance(metric, str) and metric in found:
        return found[metric]
    return {name: found[name] for name in names}


def each_salience(
    model: nn.Module,
    batches: Iterable[Batch],
    names: Sequence[str],
    *,
    targets: Targets = "attention",
    steps: int = 64,
    expectation: Expectation | None = None,
    sign: Literal[1, -1] = 1,
    hessian: HessianWay = "exact",
    loss: Loss | None = None,
    seed: int = 0,
    watch: PassWatch | None = None,
) -> Iterator[Salience]:
    """Measure several metrics, and hold the scores of one at a time.

    Args:
        model: as in `salience`; it is as before when the iterator ends or is closed.
        batches: as in `salience`.
        names: the metrics.
        targets: as in `salience`.
        steps: as in `salience`.
        expectation: as in `salience`.
        sign: as in `salience`.
        hessian: as in `salience`.
        loss: as in `salience`.
        seed: as in `salience`.
        watch: told of every batch of each pass over them.

    Yields:
        The salience of each metric, in the order in which they are computed.

    Raises:
        DeltaLensError: as `salience`.
    """
    if sign not in (1, -1):
        raise DeltaLensError(f"sign={sign!r}: choose 1 or -1")
    if hessian not in get_args(HessianWay):
        raise DeltaLensError(f"hessian={hessian!r}: choose exact or difference")
    options = PassOptions(_checked_expectation(expectation, names), sign, hessian, seed)
    layers = choose_targets(model, targets)
    with_data = any(not SALIENCE_METRICS[name].data_free for name in names)
    used = first_batches(batches, steps) if with_data else []
    examples = sum(map(example_count, used))
    fewer = (f"only {len(used)} of {steps} calibration batches were given",)
    with preserved(model):
        run = Calibration(model, layers, used, loss, watch)
        for name, scores, notes in scores_by_metric(run, names, options):
            _refuse_not_finite(name, scores)
            facts = SALIENCE_METRICS[name]
            yield Salience(
                metric=name,
                scores=scores,
                signed=facts.signed,
                steps=0 if facts.data_free else len(used),
                examples=0 if facts.data_free else examples,
                notes=notes if facts.data_free or len(used) == steps else (*fewer, *notes),
            )
            del scores


def seconds_of_pass(model: nn.Module, layers: Sequence[Layer], batch: Batch) -> float:
    """Time a plain forward and backward pass, which gives the weights of some layers a gradient.

    Args:
        model: the model; it is afterwards as before.
        layers: layers of the model.
        batch: what it computes the loss on.

    Returns:
        Seconds.

    Raises:
        DeltaLensError: the batch has no loss, or the loss has no gradient.
    """
    with preserved(model):
        run = Calibration(model, layers, [batch], None)
        begun = time.perf_counter()
        # Reading a number of each gradient waits for an accelerator.
        run.backward(lambda name, gradient: gradient.view(-1)[:1].cpu())
        return time.perf_counter() - begun


def _checked_expectation(expectation: str | None, names: Sequence[str]) -> Expectation:
    if expectation is None:
        return "inside"
    if expectation not in EXPECTATIONS:
        raise DeltaLensError(f"expectation={expectation!r}: choose inside or outside")
    without = [name for name in names if not SALIENCE_METRICS[name].outside]
    if expectation == "outside" and without:
        raise DeltaLensError(
            f"expectation='outside': {', '.join(without)} sees no data, so there is no expectation "
            "to take; leave the option out, or the metric"
        )
    return "inside" if expectation == "inside" else "outside"


def _refuse_not_finite(metric: str, scores: Mapping[str, Tensor]) -> None:
    broken = [name for name, tensor in scores.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise DeltaLensError(
            fault_list(
                f"the salience ({metric}) of these weights is not finite; look at the weights, the "
                "loss and the labels:",
                broken,
            )
        )
