"""The steps of a probe's run as columns of a picture, and panels over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deltalens.figures.style import columns_for, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["RunTime", "mean_per", "panel_grid"]

_COLUMNS = 400
"""With more logged steps than this, neighbors are averaged."""


@dataclass(frozen=True)
class RunTime:
    """The x-axis: steps grouped into at most `_COLUMNS` columns."""

    starts: np.ndarray
    """First step of each column."""
    centers: np.ndarray
    """Mean step of each column."""
    edges: np.ndarray
    """Edges of the columns, in steps: one more than there are columns."""

    @property
    def marker(self) -> str:
        """The mark of lines; a single step would not be seen without one."""
        return "o" if len(self.centers) == 1 else ""

    @staticmethod
    def of(steps: pd.Series[int]) -> RunTime:
        """Group logged steps.

        Args:
            steps: with repetitions.

        Returns:
            The columns.
        """
        logged = np.unique(steps.to_numpy(dtype=np.int64))
        each = -(-len(logged) // _COLUMNS)
        parts = [logged[start : start + each] for start in range(0, len(logged), each)]
        starts = np.array([part[0] for part in parts])
        centers = np.array([part.mean() for part in parts])
        gaps = starts[1:] - [part[-1] for part in parts[:-1]]
        half = float(np.median(gaps)) / 2 if len(gaps) else 0.5
        edges = np.append(starts - half, logged[-1] + half)
        return RunTime(starts, centers, edges)

    def column(self, steps: pd.Series[int]) -> np.ndarray:
        """Find the column of each step.

        Args:
            steps: logged ones.

        Returns:
            As many indices.
        """
        return np.searchsorted(self.starts, steps.to_numpy(dtype=np.int64), side="right") - 1


def panel_grid(panels: int, across: int, height: float, **options: Any) -> tuple[Figure, list[Any]]:
    """Make a figure of panels over the optimizer steps; each names its x-axis.

    Args:
        panels: how many there are.
        across: how many stand side by side.
        height: of a row of panels, in inches.
        options: further arguments of matplotlib's `subplots`.

    Returns:
        The figure, and the panels' axes.
    """
    from matplotlib.ticker import MaxNLocator

    across = min(across, panels) if columns_for(2) > 1 else 1
    down = -(-panels // across)
    figure = new_figure(height * down + 0.5, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, **options)
    for spare in axes.flat[panels:]:
        spare.set_visible(False)
    for axis in axes.flat[:panels]:
        axis.tick_params(labelbottom=True)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axis.set_xlabel("optimizer step")
    return figure, list(axes.flat[:panels])


def mean_per(frame: pd.DataFrame, keys: list[str], column: str) -> pd.Series[float]:
    """Average a column, weighted by entries.

    Args:
        frame: with `entries`, a row for each tensor and step.
        keys: columns within whose values the mean is taken.
        column: what is averaged; rows without a value are left out.

    Returns:
        Values of the keys -> mean.
    """
    logged = frame[frame[column].notna()]
    weighted = logged[keys].assign(
        total=logged[column].astype(float) * logged["entries"], entries=logged["entries"]
    )
    sums = weighted.groupby(keys, observed=True)[["total", "entries"]].sum()
    return sums["total"] / sums["entries"]
