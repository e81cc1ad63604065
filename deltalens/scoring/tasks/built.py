"""Tasks with their requests, which are built once and measured many times."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.catalog.metrics import DIRECTIONS, Better
from deltalens.errors import DeltaLensError, describe_error
from deltalens.scoring.tasks.finding import load_tasks
from deltalens.scoring.tasks.selection import TaskSelection
from deltalens.scoring.tasks.surroundings import GeneratorStates, code_allowed, quiet, seeded
from deltalens.scoring.tasks.templates import render_once

if TYPE_CHECKING:
    from lm_eval.api.model import LM

__all__ = ["BuiltTask", "BuiltTasks", "build_tasks", "metric_name"]

_DIGITS = 16
"""Hexadecimal digits of a digest."""
_CHARACTERS_IN_A_TOKEN, _GENERATED = 4, 256
"""Of a usual tokenizer; tokens that the harness generates at most, if a task says nothing."""
_NO_FILTER = "none"
_DATA = "data_files"
_MOVES = ("config_source", "local_files", _DATA, "data_dir")
"""Settings of a task that say where it and its data are read from; what is read there is in its
requests."""


class BuiltTask:
    """A task of the harness whose requests exist: where the harness would build them again for the
    next model, it gets the same ones, without responses. All else is the task's own."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def build_all_requests(self, **_: Any) -> None:
        """Clear the responses of the last model."""
        for instance in self._task.instances:
            instance.resps, instance.filtered_resps = [], {}


@dataclass(frozen=True, kw_only=True)
class BuiltTasks:
    """Tasks that are ready to be measured."""

    tasks: Mapping[str, BuiltTask]
    groups: Mapping[str, Any]
    """Name -> the harness's group, which weighs its tasks."""
    states: GeneratorStates
    """Of the global generators after the requests were built."""
    seconds: float
    """That loading and building took."""

    @property
    def requests(self) -> int:
        """Number of requests of all tasks."""
        return sum(len(task.instances) for task in self.tasks.values())

    @property
    def responses(self) -> int:
        """Number of responses that one model gives: some requests are repeated."""
        return sum(one.repeats for task in self.tasks.values() for one in task.instances)

    @property
    def tokens(self) -> int:
        """Tokens that one model computes, about and at most."""
        return sum(map(_tokens, (each for task in self.tasks.values() for each in task.instances)))

    @property
    def data_files(self) -> list[Path]:
        """The local files that tasks name as their data."""
        named = ((task.config.dataset_kwargs or {}).get(_DATA) for task in self.tasks.values())
        return [file for each in named for file in map(Path, _texts(each)) if file.is_file()]

    def identity(self) -> dict[str, Any]:
        """Collect what decides the numbers: each task's settings, and the text of its requests.

        Returns:
            JSON values.
        """
        described = {
            name: {
                "version": task.VERSION,
                "num_fewshot": task.config.num_fewshot,
                "config": _digest(_without_places(task.dump_config())),
                "requests": _digest([[each.args, each.doc] for each in task.instances]),
            }
            for name, task in self.tasks.items()
        }
        groups = {
            name: _digest(_without_places(group.to_dict() or {}))
            for name, group in self.groups.items()
        }
        return {"lm_eval": version("lm_eval"), "tasks": described, "groups": groups}

    def better(self) -> dict[str, Better]:
        """Say which values of the metrics are better.

        Returns:
            Metric without task and filter -> direction; those on which tasks disagree are left out.
        """
        found: dict[str, set[bool]] = {}
        for task in self.tasks.values():
            for metric, higher in task.higher_is_better().items():
                found.setdefault(metric_name("", metric, _NO_FILTER)[1:], set()).add(bool(higher))
        higher, lower = DIRECTIONS
        return {
            metric: higher if min(ways) else lower
            for metric, ways in found.items()
            if len(ways) == 1
        }

    def metrics(self) -> set[str]:
        """List the names by which metrics can be chosen.

        Returns:
            Names of metrics, alone and after their task and filter.
        """
        names = {*self.better()}
        for task_name, task in self.tasks.items():
            filters = [each["name"] for each in task.config.filter_list or ()] or [_NO_FILTER]
            for metric in task.higher_is_better():
                names |= {metric_name(task_name, metric, each) for each in filters}
        return names


def metric_name(task: str, metric: str, filter_name: str) -> str:
    """Name a measurement of a task in the records.

    Args:
        task: name of the task or group.
        metric: as the harness calls it.
        filter_name: of what extracts the answer from a response; `none`: there is no choice.

    Returns:
        `TASK/FILTER/METRIC`, or `TASK/METRIC` without filter; so a file's metric is `FILE/METRIC`.
    """
    # In records, METRIC@STEP is a metric at a step of a training.
    metric = metric.replace("@", "_at_")
    return f"{task}/{metric}" if filter_name == _NO_FILTER else f"{task}/{filter_name}/{metric}"


def build_tasks(selection: TaskSelection, lm: LM | None = None) -> BuiltTasks:
    """Load tasks, and build the requests of all of them, as `lm_eval.simple_evaluate` would.

    Args:
        selection: which, and the harness's options; `apply_chat_template` is up to `lm`.
        lm: the harness's view of a model, whose chat template is applied; None: none is.

    Returns:
        The tasks with their requests.

    Raises:
        DeltaLensError: see `load_tasks`; or requests cannot be built.
    """
    begun = time.perf_counter()
    with quiet(bars=True), code_allowed(selection.confirm_run_unsafe_code), seeded():
        loaded = load_tasks(selection)
        for name, task in loaded.tasks.items():
            _set_fewshot(task, selection.num_fewshot)
            render_once(task)
            try:
                task.build_all_requests(
                    limit=selection.limit,
                    rank=0,
                    world_size=1,
                    apply_chat_template=lm is not None,
                    fewshot_as_multiturn=True,
                    chat_template=lm.apply_chat_template if lm is not None else None,
                )
            except Exception as error:  # A task's templates and functions raise all kinds.
                raise DeltaLensError(
                    f"task {name!r}: its requests cannot be built: {describe_error(error)}"
                ) from error
        return BuiltTasks(
            tasks={name: BuiltTask(task) for name, task in loaded.tasks.items()},
            groups=loaded.groups,
            states=GeneratorStates.now(),
            seconds=time.perf_counter() - begun,
        )


def _tokens(instance: Any) -> int:
    """Tokens of a request: of its texts, and those that may be generated."""
    texts = [part for part in instance.args if isinstance(part, str)]
    options = next((part for part in instance.args if isinstance(part, Mapping)), None)
    generated = 0 if options is None else int(options.get("max_gen_toks", _GENERATED))
    return sum(map(len, texts)) // _CHARACTERS_IN_A_TOKEN + generated


def _set_fewshot(task: Any, num_fewshot: int | None) -> None:
    """Set the number of examples and their seed, as the harness does. A task that is meant to have
    none keeps it so."""
    own = task.get_config("num_fewshot")
    if num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=1234)


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A task's or group's settings, whatever folder they and their data were read from."""
    kept = {**config}
    for part in ("metadata", "dataset_kwargs"):
        entries = config.get(part)
        entries = entries if isinstance(entries, Mapping) else {}
        kept[part] = {name: value for name, value in entries.items() if name not in _MOVES}
    return kept


def _texts(value: Any) -> Iterator[str]:
    """All texts in lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _plain(value: Any) -> Any:
    """A value that JSON lacks, in the same way in every process: of a function its source."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if callable(value):
        try:
            return inspect.getsource(value)
        except (TypeError, OSError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return f"{type(value).__module__}.{type(value).__qualname__}"
