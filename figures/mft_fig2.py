"""MFT, Figure 2: performance over the training steps (2503.22764)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.looks import looks_of
from deltalens.catalog.methods import METHODS, Look, method_name
from deltalens.catalog.metrics import scale_of
from deltalens.errors import RecordError
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.mft_panels import Panel, curve, draw_panels, level
from deltalens.figures.mft_studies import (
    LOOKS,
    MftStudy,
    check_same_data,
    domain_of,
    in_order,
    load_all,
    parts_of,
)
from deltalens.figures.paper_points import draw_points, mft_points, mft_tables, points_note
from deltalens.io.records import TrainingRecord, is_training, load_training

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw"]

_NOT_LEARNED = [name for name, one in METHODS.items() if one.masks and not one.trains]
_LEVELS = ("base", "ft", *sorted(_NOT_LEARNED, key=lambda name: METHODS[name].as_trained != ""))
_RISING = Look("FFT, training", "#0072B2", "o", "-")
"""The training that made the fine-tune; the continued one has its color, dotted."""


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw comparisons over the steps of their trainings, each on the data of its own domain: lines
    for methods that train, levels for the base, the fine-tune and masks that are not learned.

    The x-axis counts from the base, as the paper's does, where the training that made the fine-tune
    is given as well: its line rises from the base to the star, and what goes on from the fine-tune
    begins there. LoRA begins at the base, continued LoRA at LoRA's end.

    Args:
        folders: of the studies, such as one for each domain; and of trainings from the base to
            their fine-tunes, told apart by their training data's domain.
        entry: the figure.

    Returns:
        The figure.

    Raises:
        RecordError: no comparison is there, no cell of it is finished, nothing was measured during
            training, or a training belongs to no comparison.
    """
    trainings = [load_training(folder) for folder in folders if is_training(folder)]
    studies = load_all([one for one in folders if not is_training(one)], "comparison")
    for study in studies:
        if study.frame["step"].isna().all():
            raise RecordError(
                f"{study.path}: nothing was measured during training; run it with eval_every"
            )
    rising = _by_study(studies, trainings)
    rows = [
        [Panel(study, data, metric) for metric in metrics]
        for study in studies
        for data, metrics in study.own_sets.items()
    ]
    of_paper: list[bool] = []

    def panel(axis: Any, one: Panel) -> None:
        of_paper.append(_draw_panel(axis, one, rising.get(one.study.path)))

    def note() -> str:
        whose = mft_tables(study.record.model for study in studies)
        paper = points_note(any(of_paper), f"{whose}, at the end of each line")
        return " ".join([*_notes(studies, rising), paper])

    return [draw_panels(rows, panel, entry.file_name, xlabel="training step", note=note)]


def _by_study(
    studies: Sequence[MftStudy], trainings: Sequence[TrainingRecord]
) -> dict[Path, TrainingRecord]:
    """The training that made each study's fine-tune."""
    check_same_data([*(study.record for study in studies), *trainings])
    found: dict[Path, TrainingRecord] = {}
    for training in trainings:
        name = str((training.spec.get("data") or [training.path.name])[0])
        own = [study for study in studies if study.domain == domain_of(name)]
        own = own or ([*studies] if len(studies) == len(trainings) == 1 else [])
        if not own:
            raise RecordError(
                f"{training.path}: trained on {name}, and no comparison of that domain was named: "
                f"{', '.join(study.domain for study in studies)}"
            )
        if not training.evaluations():
            raise RecordError(
                f"{training.path}: nothing was measured during training; run it with eval_every "
                "and eval_data"
            )
        found |= {study.path: training for study in own}
    return found


def _notes(studies: Sequence[MftStudy], rising: Mapping[Path, TrainingRecord]) -> list[str]:
    notes = ["Star: the fine-tune, where MFT and continued FFT start."]
    if len(rising) < len(studies):
        notes.append(
            "Steps count from the fine-tune where its own training was not given, for LoRA from "
            "the base."
        )
    if any("lora-continued" in study.methods for study in studies):
        notes.append("Continued LoRA goes on from LoRA's end.")
    return notes


def _draw_panel(axis: Any, panel: Panel, training: TrainingRecord | None) -> bool:
    """One panel; whether it has points of the paper."""
    from matplotlib.ticker import MaxNLocator

    scale = scale_of(panel.name)
    end = panel.study.of(panel.data, panel.name)
    for method in _LEVELS:
        level(axis, end[end["method"] == method], LOOKS[method], scale)
    way = _on_the_way(panel)
    begun = _rising(axis, panel, training, end, scale) if training else 0.0
    methods = in_order([str(one) for one in way["method"]])
    ends: dict[str, float] = {"base": 0.0, "ft": begun}
    for method, look in looks_of(methods, known=LOOKS).items():
        own = _from_its_start(panel, way, end, method, begun)
        curve(axis, own, "step", look, scale)
        ends[method] = float(own["step"].max())
    tuned = end[end["method"] == "ft"]["value"]
    if not tuned.empty:
        style = {"markersize": 11, "markerfacecolor": "#F0E442", "markeredgecolor": "black"}
        axis.plot(begun, scale * tuned.mean(), marker="*", clip_on=False, zorder=5, **style)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return draw_points(
        axis, panel.name, mft_points(panel.data, ends, panel.study.record.model), LOOKS
    )


def _from_its_start(
    panel: Panel, way: pd.DataFrame, end: pd.DataFrame, method: str, begun: float
) -> pd.DataFrame:
    """A method's cells over steps, from where it starts: the base, the fine-tune, or LoRA's end."""
    import pandas as pd

    facts = METHODS.get(method_name(method))
    from_base = facts is not None and facts.from_base
    continued = method_name(method) == "lora-continued"
    length = panel.study.steps
    offset, start = (0.0, "base") if from_base else (begun, "ft")
    if continued:
        offset, start = (float(length), "lora") if length else (math.nan, "")
    own = way[way["method"] == method]
    if math.isnan(offset):
        return own
    first = end[end["method"] == start]
    points = [first.assign(step=offset), own.assign(step=own["step"] + offset)]
    return pd.concat([part for part in points if not part.empty])


def _rising(
    axis: Any, panel: Panel, training: TrainingRecord, end: pd.DataFrame, scale: float
) -> float:
    """The line of the training that made the fine-tune; returns the step at which it ended."""
    import pandas as pd

    (only, *_), *_ = training.spec.get("eval_data") or [[panel.data]]
    rows = [
        {"step": float(step), "value": found.value, "stderr": found.stderr}
        for step, metric, found in training.evaluations()
        for data, name, _ in [parts_of(metric, str(only))]
        if (data, name) == (panel.data, panel.name)
    ]
    base = end[end["method"] == "base"].assign(step=0.0)[["step", "value", "stderr"]]
    frame = pd.concat([base, pd.DataFrame(rows, columns=base.columns)]).astype(float)
    curve(axis, frame.drop_duplicates("step", keep="last"), "step", _RISING, scale)
    return float(training.facts.get("steps") or frame["step"].max())


def _on_the_way(panel: Panel) -> pd.DataFrame:
    """What was measured at steps, and the end of a training of known length, if that is none."""
    import pandas as pd

    frame = panel.study.frame
    held = frame[(frame["data"] == panel.data) & (frame["name"] == panel.name)]
    way, end = held[held["step"].notna()], held[held["step"].isna()]
    last = panel.study.steps
    if last is None or way.empty or float(way["step"].max()) >= last:
        return way
    return pd.concat([way, end[end["method"].isin(way["method"])].assign(step=float(last))])
