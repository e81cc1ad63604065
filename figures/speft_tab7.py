"""SPEFT, Tables 5 to 8: hyperparameters (2412.13488)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deltalens.catalog.variants import is_sparse, variant_of
from deltalens.errors import Lines
from deltalens.figures.drawing import Drawing
from deltalens.figures.entry import FigureEntry
from deltalens.figures.speft_studies import COMPARISON, SpeftStudy, load_speft, speft_look
from deltalens.figures.tables import NOTHING, Block, Entry, TableFigure, draw_table
from deltalens.io.papers import PaperTable, paper_table

__all__ = ["draw"]

_LABELS = ("method", "hyperparameter")


def draw(folders: Sequence[Path], entry: FigureEntry) -> list[Drawing]:
    """Draw the hyperparameters of comparisons beside those of the paper's models.

    Args:
        folders: of the studies.
        entry: the table; its number says which of the paper's stands beside.

    Returns:
        The table.

    Raises:
        RecordError: a folder has no comparison, or no cell of it is finished.
    """
    studies, paper = load_speft(folders, COMPARISON), paper_table(entry.file_name)
    keys, of_paper = _keys(paper, studies), _printed(paper)
    alike: dict[tuple[str, ...], list[SpeftStudy]] = {}
    for study in studies:
        column = tuple(", ".join(_values(study, *key)) or NOTHING for key in keys)
        alike.setdefault(column, []).append(study)
    printed = [[of_paper[model].get(key) or NOTHING for key in keys] for model in paper.measures]
    rows = [
        (*map(Entry, key), *map(Entry, cells))
        for key, *cells in zip(keys, *alike, *printed, strict=True)
    ]
    heads = (
        *_LABELS,
        *(_head(part, len(studies)) for part in alike.values()),
        *(f"the paper: {model}" for model in paper.measures),
    )
    block = Block("study", "Settings", heads, tuple(rows), len(_LABELS), 1)
    notes = (
        "Shared: of all methods. Values of several variants stand side by side. Batch Size: rows in"
        " an optimizer step. Optimizer and schedule: the trainer's where its recipe names none.",
        f"The paper: {paper.source}.",
        *paper.notes,
    )
    return [draw_table(TableFigure(entry.file_name, entry.title, (block,), notes))]


def _head(alike: Sequence[SpeftStudy], of: int) -> str:
    """Names studies whose settings are the same."""
    if of == 1:
        return "this study"
    models = dict.fromkeys(study.record.model for study in alike if study.record.model)
    domains = dict.fromkeys(study.domain for study in alike)
    return Lines(*(", ".join(names) for names in (models, domains) if names))


class _Setting(NamedTuple):
    """A hyperparameter: where the paper's tables have it, and how a study records it."""

    read: Callable[[SpeftStudy, str], str]
    groups: tuple[str, ...]
    also: str = ""
    """Another name that the paper has for it."""


_REST = "all others"
"""What the paper's tables have lost; the last of its group."""
_SHARED, _LORA, _PISSA, _SPARSE = "Shared", "LoRA", "PiSSA", "Sparse"
_LOW_RANK = (_LORA, _PISSA)
_EACH = (*_LOW_RANK, _SPARSE)


def _recorded(name: str, otherwise: str = "") -> Callable[[SpeftStudy, str], str]:
    def read(study: SpeftStudy, method: str) -> str:
        value = study.setting(name, method)
        return otherwise if value is None else _in_words(value)

    return read


def _of_recipe(name: str, otherwise: str) -> Callable[[SpeftStudy, str], str]:
    def read(study: SpeftStudy, method: str) -> str:
        recipe = study.setting("recipe", method)
        return str(recipe.get(name, otherwise) if isinstance(recipe, dict) else otherwise)

    return read


def _rows_of_a_step(study: SpeftStudy, method: str) -> str:
    rows = study.setting("batch_size", method)
    batches = study.setting("accumulate", method) or 1
    both = isinstance(rows, int) and isinstance(batches, int)
    return f"{rows * batches}" if both else _recorded("batch_size")(study, method)


def _length(study: SpeftStudy, method: str) -> str:
    steps = study.setting("steps", method)
    return f"{steps} steps" if steps else _recorded("epochs")(study, method)


def _density(study: SpeftStudy, method: str) -> str:
    forms = {
        "density": "{} of the adapted weights",
        "of_model": "{} of the model",
        "like_lora": "as many as LoRA r = {}",
    }
    own = variant_of(method).settings
    for name, form in forms.items():
        value = own.get(name) or _recorded(name)(study, method)
        if value:
            return form.format(value)
    return ""


_SETTINGS: Mapping[str, _Setting] = {
    "Optimizer": _Setting(_of_recipe("optim", "AdamW"), (_SHARED,)),
    "Warmup Ratio": _Setting(_recorded("warmup"), (_SHARED,)),
    "LR Schedule": _Setting(_of_recipe("lr_scheduler_type", "cosine"), (_SHARED,)),
    "Runs": _Setting(_recorded("seeds"), (_SHARED,)),
    "Batch Size": _Setting(_rows_of_a_step, _EACH),
    "# Epochs": _Setting(_length, _EACH),
    "Learning Rate": _Setting(_recorded("learning_rate"), _EACH),
    "LoRA r": _Setting(_recorded("lora_rank"), _LOW_RANK),
    "LoRA α": _Setting(_recorded("lora_alpha"), _LOW_RANK),
    "Sparse Top k": _Setting(_density, (_SPARSE,), also="ρ"),
    "Max Seq. Len.": _Setting(_recorded("max_length", "the model's"), _EACH),
}


def _in_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(study: SpeftStudy, group: str, name: str) -> list[str]:
    """The values that the methods of a group have, each once."""
    known = [one for key, one in _SETTINGS.items() if name in (key, one.also)]
    methods = [
        method
        for method in study.methods
        if study.is_trained(method) and group in (_SHARED, _group(method))
    ]
    found = (one.read(study, method) for one in known for method in methods)
    return [*dict.fromkeys(value for value in found if value)]


def _group(method: str) -> str:
    """The paper's heading above the settings of a method."""
    return _SPARSE if is_sparse(method) else speft_look(variant_of(method).method).label


def _printed(paper: PaperTable) -> dict[str, dict[tuple[str, str], str]]:
    """Model -> method and hyperparameter -> what the paper has."""
    keys = [(str(row["method"]), str(row["hyperparameter"])) for _, row in paper.cells.iterrows()]
    return {
        model: dict(zip(keys, map(str, paper.cells[model]), strict=True))
        for model in paper.measures
    }


def _keys(paper: PaperTable, studies: Sequence[SpeftStudy]) -> list[tuple[str, str]]:
    """The rows: the paper's, and what else the studies have, by method."""
    printed = [*dict.fromkeys(key for of_model in _printed(paper).values() for key in of_model)]
    more = [
        (group, name)
        for name, one in _SETTINGS.items()
        for group in one.groups
        if not {(g, n) for g in (group, _SHARED) for n in (name, one.also)} & {*printed}
        and any(_values(study, group, name) for study in studies)
    ]
    order = (_SHARED, *_EACH)
    return sorted([*printed, *more], key=lambda key: (order.index(key[0]), key[1] == _REST))
