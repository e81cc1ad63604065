"""MFT, Figure 2: performance over the training steps (2503.22764)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.looks import looks_of
from deltalens.catalog.methods import METHODS
from deltalens.catalog.metrics import scale_of
from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.mft_panels import Panel, curve, draw_panels, level
from deltalens.figures.mft_studies import LOOKS, MftStudy, in_order, load_all
from deltalens.figures.registry import FigureEntry

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_NOT_LEARNED = [name for name, one in METHODS.items() if one.masks and not one.trains]
_LEVELS = ("ft", *sorted(_NOT_LEARNED, key=lambda name: METHODS[name].as_trained != ""))


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw comparisons over the steps of their trainings, each on the data of its own domain: lines
    for methods that train, levels for the fine-tune (with a star where training starts) and for
    masks that are not learned.

    The x-axis counts the steps of each training from its own start: the fine-tune, or for LoRA the
    base. The paper counts from the base.

    Args:
        folders: of the studies, such as one for each domain.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no comparison is there, no cell of it is finished, or nothing was measured
            during training.
    """
    studies = load_all(folders, "comparison")
    for study in studies:
        if study.frame["step"].isna().all():
            raise RecordError(
                f"{study.path}: nothing was measured during training; run it with eval_every"
            )
    rows = [
        [Panel(study, data, metric) for metric in metrics]
        for study in studies
        for data, metrics in study.own_sets.items()
    ]
    note = "Star: the fine-tune, where training starts."
    if any("lora" in study.methods for study in studies):
        note += " LoRA's step 0 is the base."
    if any("lora-continued" in study.methods for study in studies):
        note += " Continued LoRA goes on from LoRA's end."
    return [draw_panels(rows, _panel, entry.file_name, xlabel="training step", note=note)]


def _panel(axis: Any, panel: Panel) -> None:
    scale = scale_of(panel.name)
    end = panel.study.of(panel.data, panel.name)
    for method in _LEVELS:
        level(axis, end[end["method"] == method], LOOKS[method], scale)
    way = _on_the_way(panel)
    methods = in_order([str(one) for one in way["method"]])
    for method, look in looks_of(methods, known=LOOKS).items():
        own = way[way["method"] == method]
        curve(axis, own, "step", look._replace(line="-"), scale)
    tuned = end[end["method"] == "ft"]["value"]
    if not tuned.empty:
        style = {"markersize": 11, "markerfacecolor": "#F0E442", "markeredgecolor": "black"}
        axis.plot(0, scale * tuned.mean(), marker="*", clip_on=False, zorder=5, **style)
    axis.set_xlim(left=0)


def _on_the_way(panel: Panel) -> pd.DataFrame:
    """What was measured at steps, and the end of a training of known length, if that is none."""
    import pandas as pd

    frame = panel.study.frame
    held = frame[(frame["data"] == panel.data) & (frame["name"] == panel.name)]
    way, end = held[held["step"].notna()], held[held["step"].isna()]
    last = _steps(panel.study)
    if last is None or way.empty or float(way["step"].max()) >= last:
        return way
    return pd.concat([way, end[end["method"].isin(way["method"])].assign(step=float(last))])


def _steps(study: MftStudy) -> int | None:
    steps = study.record.spec.get("steps")
    return steps if isinstance(steps, int) else None
