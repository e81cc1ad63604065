"""Every figure and table that can be drawn by name. Twins share one way of drawing: Figure 8 of MFT
is Figure 4 for another domain, and Table 2 is Table 1 for another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deltalens.figures.entry import FigureEntry

__all__ = ["FIGURES"]

_ROWS = "--train-data TRAIN --eval-data TEST -o STUDY"
_GMT_SWEEP = f"deltalens sweep mask-ratio ft,one-off-drop,hft,random-mask,gmt BASE {_ROWS}"
_MFT_SWEEP = f"deltalens sweep mask-ratio mft,random-mask-weights,l1-mask FT {_ROWS}"
_DROP_STUDY = "deltalens drop-study FT BASE --data TEST -o STUDY"
_DATA_SWEEP = f"deltalens sweep data-ratio {{}} {_ROWS}"
_LAYERS = f"deltalens sweep layers mft FT --group-sizes {{}} {_ROWS}"
_COMPARE = (
    "deltalens compare base,lora,lora-continued,ft,sft,random-mask-weights,l1-mask,mft FT "
    f"--base BASE {_ROWS}"
)
_SPEFT = ",".join(
    f"speft:metric={name}"
    for name in (
        *("magnitude", "gradient", "synflow", "snip", "force", "taylor-fo", "grasp", "fisher"),
    )
)
_LANDSCAPE = "deltalens landscape FT CONTINUED MFT --data TRAIN --data TEST -o STUDY"
_SALIENCE = "deltalens salience MODEL --data TRAIN -o STUDY"


def _code(module: str) -> str:
    return f"deltalens.figures.{module}:draw"


def _twin(entry: FigureEntry, name: str, number: str, shows: str = "", **more: Any) -> FigureEntry:
    """The same figure under another number."""
    shows = shows or entry.shows
    return replace(entry, name=name, number=number, shows=shows, same_as=entry.name, **more)


def _gmt(name: str, number: str, shows: str, source: str, command: str, **more: Any) -> FigureEntry:
    return FigureEntry(
        name=name,
        paper="GMT",
        number=number,
        shows=shows,
        source=source,
        command=command,
        code=_code(name.replace("-", "_")),
        several=bool(source),
        **more,
    )


def _mft(name: str, number: str, shows: str, source: str, command: str, **more: Any) -> FigureEntry:
    return replace(_gmt(name, number, shows, source, command, **more), paper="MFT")


def _speft(
    name: str, number: str, shows: str, source: str, command: str, **more: Any
) -> FigureEntry:
    return replace(_gmt(name, number, shows, source, command, **more), paper="SPEFT")


_MASK_RATIO, _DATA_RATIO = "mask-ratio-sweep", "data-ratio-sweep"
_MFT_FIG4 = _mft(
    "mft-fig4", "Figure 4", "performance over the mask ratio: coding", _MASK_RATIO, _MFT_SWEEP
)
_MFT_FIG5 = _mft(
    "mft-fig5",
    "Figure 5",
    "performance over the amount of data: maths",
    _DATA_RATIO,
    _DATA_SWEEP.format("sft,mft FT"),
)
_MFT_FIG6 = _mft("mft-fig6", "Figure 6", "loss landscape of each domain", "landscape", _LANDSCAPE)
_MFT_TAB1 = _mft(
    "mft-tab1",
    "Table 1",
    "methods on the data of their domain",
    "comparison",
    _COMPARE,
    options=("mixed",),
)
_MFT_TAB5 = _mft(
    "mft-tab5",
    "Table 5",
    "every domain's models on every data set",
    "comparison",
    f"{_COMPARE} --eval-data OTHER",
)
_SPEFT_TAB1 = _speft(
    "speft-tab1",
    "Table 1",
    "salience metrics, LoRA and PiSSA on several tasks",
    "comparison",
    f"deltalens compare lora,pissa,{_SPEFT} BASE {_ROWS}",
)
_SPEFT_TAB7 = _speft(
    "speft-tab7",
    "Table 7",
    "hyperparameters on maths",
    "comparison",
    f"deltalens compare lora,pissa,speft BASE {_ROWS}",
)

_ENTRIES = (
    _gmt("gmt-fig1", "Figure 1", "the method: one-off drop beside masked gradients", "", ""),
    _gmt("gmt-fig2", "Figure 2", "performance over the mask ratio", _MASK_RATIO, _GMT_SWEEP),
    _gmt("gmt-fig3", "Figure 3", "performance over the drop rate", "drop-study", _DROP_STUDY),
    _gmt(
        "gmt-tab1",
        "Table 1",
        "methods on one domain each",
        _MASK_RATIO,
        _GMT_SWEEP,
        options=("ratio",),
    ),
    _gmt(
        "gmt-tab2",
        "Table 2",
        "methods on several tasks",
        _MASK_RATIO,
        f"{_GMT_SWEEP} --eval-data OTHER",
        options=("ratio",),
    ),
    _gmt(
        "gmt-tab3",
        "Table 3",
        "training speed",
        "efficiency",
        "deltalens efficiency random-mask,gmt BASE --train-data TRAIN -o STUDY",
    ),
    _gmt("gmt-tab4", "Table 4", "best mask ratios", _MASK_RATIO, _GMT_SWEEP),
    _gmt(
        "gmt-data",
        "",
        "masked gradients beside plain fine-tuning on less data",
        _DATA_RATIO,
        _DATA_SWEEP.format("sft,gmt BASE"),
    ),
    _mft("mft-fig1", "Figure 1", "the method: masks after fine-tuning", "", ""),
    _mft(
        "mft-fig2",
        "Figure 2",
        "performance over the training steps",
        "comparison",
        f"{_COMPARE} --eval-every N",
    ),
    _mft(
        "mft-fig3",
        "Figure 3",
        "performance by masked blocks: small groups",
        "layer-sweep",
        _LAYERS.format("4,8"),
    ),
    _MFT_FIG4,
    _MFT_FIG5,
    _MFT_FIG6,
    _mft(
        "mft-fig7",
        "Figure 7",
        "performance by masked blocks: large groups",
        "layer-sweep",
        _LAYERS.format("16"),
    ),
    _twin(_MFT_FIG4, "mft-fig8", "Figure 8", "performance over the mask ratio: maths"),
    _twin(_MFT_FIG5, "mft-fig9", "Figure 9", "performance over the amount of data: coding"),
    _twin(_MFT_FIG6, "mft-fig10", "Figure 10", "loss landscape of the coding domain"),
    _MFT_TAB1,
    _twin(_MFT_TAB1, "mft-tab2", "Table 2"),
    _mft(
        "mft-tab3",
        "Table 3",
        "a global threshold and a local ratio",
        "comparison",
        f"deltalens compare base,ft,sft,mft FT --base BASE --setting threshold=-0.035 {_ROWS}",
    ),
    _mft("mft-tab4", "Table 4", "the data of each domain", "comparison", _COMPARE),
    _MFT_TAB5,
    _twin(_MFT_TAB5, "mft-tab6", "Table 6"),
    _speft("speft-fig1", "Figure 1", "the method: LoRA beside a sparse adapter", "", ""),
    _speft(
        "speft-fig2",
        "Figure 2",
        "performance over the trained share",
        "density-sweep",
        f"deltalens sweep density speft,lora:lora-alpha=rank,pissa BASE {_ROWS}",
    ),
    _SPEFT_TAB1,
    _twin(_SPEFT_TAB1, "speft-tab2", "Table 2", "salience metrics on larger models"),
    _twin(_SPEFT_TAB1, "speft-tab3", "Table 3", "salience metrics on maths", lost=True),
    _speft(
        "speft-tab4",
        "Table 4",
        "static or dynamic masks, global or local",
        "mask-sweep",
        f"deltalens sweep masks speft BASE --refresh-every N {_ROWS}",
        lost=True,
    ),
    _twin(_SPEFT_TAB7, "speft-tab5", "Table 5", "hyperparameters on several tasks", lost=True),
    _twin(_SPEFT_TAB7, "speft-tab6", "Table 6", "hyperparameters on instructions", lost=True),
    _SPEFT_TAB7,
    _twin(_SPEFT_TAB7, "speft-tab8", "Table 8", "hyperparameters on coding"),
    _twin(_SPEFT_TAB1, "speft-tab9", "Table 9"),
    _twin(_SPEFT_TAB1, "speft-tab10", "Table 10", lost=True),
    _twin(_SPEFT_TAB1, "speft-tab11", "Table 11"),
    _twin(_SPEFT_TAB1, "speft-tab12", "Table 12", "salience metrics on coding", lost=True),
    FigureEntry(
        name="anatomy",
        shows="distribution and energy of a delta, by layer",
        source="inspect",
        command="deltalens inspect FT BASE -o STUDY",
        code=_code("anatomy"),
    ),
    FigureEntry(
        name="salience-agreement",
        shows="overlap of the masks of salience metrics, and with a fine-tune's changes",
        source="salience",
        command=f"{_SALIENCE} --against FT",
        code=_code("salience_agreement"),
    ),
    FigureEntry(
        name="salience-budget",
        shows="density of each salience metric's mask, by block and kind of layer",
        source="salience",
        command=_SALIENCE,
        code=_code("salience_budget"),
    ),
    FigureEntry(
        name="salience-samples",
        shows="overlap of salience masks from parts of the calibration data",
        source="salience",
        command=_SALIENCE,
        code=_code("salience_samples"),
    ),
    FigureEntry(
        name="landscape",
        shows="a loss landscape as contours and as a surface, or along a line",
        source="landscape",
        command=_LANDSCAPE,
        code=_code("landscape"),
        options=("first_only",),
    ),
    FigureEntry(
        name="gradients",
        shows="gradients, masks and updates that a probe logged, over the steps",
        source="run",
        command="deltalens train sft MODEL --train-data TRAIN --probe -o OUT",
        code=_code("gradient_run"),
    ),
    FigureEntry(
        name="evaluation",
        shows="scores of several models, over the steps of their trainings or by name",
        source="evaluate",
        command="deltalens evaluate runs/a/checkpoint-* --data TEST -o STUDY",
        code=_code("evaluation"),
    ),
    FigureEntry(
        name="training",
        shows="loss, evaluations, gradient norm and learning rate over a training's steps",
        source="training",
        command=f"deltalens train sft MODEL {_ROWS.replace('STUDY', 'OUT')} --eval-every N",
        code=_code("training"),
    ),
    FigureEntry(
        name="removed-shares",
        shows="share of each layer's weights that a training removed",
        source="training",
        command="deltalens train mft FT --threshold -0.035 --train-data TRAIN -o OUT",
        code=_code("removed_shares"),
    ),
)
FIGURES: Mapping[str, FigureEntry] = {entry.name: entry for entry in _ENTRIES}
"""Every figure and table, by name."""
