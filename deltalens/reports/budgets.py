"""What the sweeps around sparse tuning answer: whether a method's lead over LoRA widens with the
budget, and whether dynamic or local masks help (SPEFT, arXiv 2412.13488)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import Better, is_lower_better
from deltalens.io.tables import is_finite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["budget_of", "leads", "masks_apart", "with_labels"]

_REFERENCE = "lora"


def with_labels(cells: pd.DataFrame) -> pd.DataFrame:
    """Call the trainings of a sweep over masks as a comparison of the same variants would.

    Args:
        cells: with `scope` and `refresh_every`, 0 of static masks.

    Returns:
        The cells with a first column `method`: `speft:scope=global`, or
        `speft:scope=layer:refresh-every=100`.
    """
    labels = [
        f"speft:scope={scope}" + (f":refresh-every={steps}" if steps else "")
        for scope, steps in zip(cells["scope"], cells["refresh_every"], strict=True)
    ]
    named = cells.copy()
    named.insert(0, "method", labels)
    return named


def budget_of(frame: pd.DataFrame, rank: Any) -> tuple[str, str]:
    """Say what a rank stands for in a density sweep.

    Args:
        frame: cells of a metric.
        rank: one of its ranks.

    Returns:
        How many parameters are trained, and the share of the model in per cent; `-` twice for rank
        0, at which methods differ.
    """
    if not rank:
        return "-", "-"
    first = frame[frame["rank"] == rank].iloc[0]
    return f"{int(first['trained']):,}", f"{100 * float(first['trained_share']):.3g} %"


def leads(metric: str, frame: pd.DataFrame, better: Better) -> Iterator[str]:
    """Compare every method of a density sweep with LoRA at equal counts, seed by seed.

    Args:
        metric: whose cells these are.
        frame: its cells.
        better: which way it is better.

    Yields:
        For each method its lead at every rank, and how that changes from the first to the last.
    """
    finite = frame[is_finite(frame["value"]) & (frame["rank"] > 0)]
    lora = finite[finite["method"] == _REFERENCE].set_index(["rank", "seed"])["value"]
    sign = -1 if is_lower_better(better) else 1
    for method, part in finite.groupby("method", sort=False):
        lead = (sign * (part.set_index(["rank", "seed"])["value"] - lora)).dropna()
        if method == _REFERENCE or lead.empty:
            continue
        means = lead.groupby(level=0).mean().sort_index()
        shown = ", ".join(f"{value:+.4f} at rank {rank}" for rank, value in means.items())
        text = f"{metric}: {method} leads {_REFERENCE} at equal counts by {shown}"
        if len(means) > 1:
            grown = float(means.iloc[-1] - means.iloc[0])
            word = "widens" if grown > 0 else "does not widen"
            text += f"; the lead {word} from rank {means.index[0]} to {means.index[-1]}"
            text += f" ({grown:+.4f})"
        yield text


def masks_apart(metric: str, frame: pd.DataFrame, better: Better) -> Iterator[str]:
    """Compare dynamic with static masks, and local with global ones, seed by seed.

    Args:
        metric: whose cells these are.
        frame: its cells, with `scope` and `refresh_every`.
        better: which way it is better.

    Yields:
        A sentence for each of the two, as far as the sweep has both sides.
    """
    values = frame[is_finite(frame["value"])].set_index(["scope", "refresh_every", "seed"])["value"]
    of_steps = {int(steps): _part(values, "refresh_every", steps) for steps in _levels(values, 1)}
    for steps, dynamic in of_steps.items():
        if steps and 0 in of_steps:
            name = f"masks renewed every {steps} steps minus static ones"
            yield from _apart(metric, name, dynamic, of_steps[0], better)
    of_scope = {str(scope): _part(values, "scope", scope) for scope in _levels(values, 0)}
    for scope, local in of_scope.items():
        if scope != "global" and "global" in of_scope:
            name = f"masks by {scope} minus global ones"
            yield from _apart(metric, name, local, of_scope["global"], better)


def _levels(values: pd.Series[float], level: int) -> list[Any]:
    return list(dict.fromkeys(values.index.get_level_values(level)))


def _part(values: pd.Series[float], level: str, value: Any) -> pd.Series[float]:
    part: pd.Series[float] = values.xs(value, level=level)
    return part


def _apart(
    metric: str, what: str, one: pd.Series[float], other: pd.Series[float], better: Better
) -> Iterator[str]:
    apart = (one - other).dropna()
    if apart.empty:
        return
    spread = float(apart.std()) if len(apart) > 1 else math.nan
    shown = f"{float(apart.mean()):+.4f}" + (f" ± {spread:.4f}" if math.isfinite(spread) else "")
    yield f"{metric}: {what}: {shown} over {len(apart)} pairs ({better} is better)"
