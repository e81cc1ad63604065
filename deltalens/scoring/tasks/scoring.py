"""Measuring models on standard tasks."""

from __future__ import annotations

import copy
import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from deltalens.errors import DeltaLensError, describe_error
from deltalens.io.records import Measurement
from deltalens.scoring.file_scoring import can_generate
from deltalens.scoring.loading import LoadedModel
from deltalens.scoring.tasks.built import BuiltTasks, build_tasks, metric_name
from deltalens.scoring.tasks.selection import TaskSelection
from deltalens.scoring.tasks.surroundings import code_allowed, quiet, seeded
from deltalens.scoring.texts import Report

if TYPE_CHECKING:
    from deltalens.scoring.tasks.live_lm import LiveLM

__all__ = ["StandardTasks", "TaskScoring"]


class StandardTasks:
    """Standard tasks as a part of what a study measures. They can be sent to another process, which
    builds their requests again, once.

    Args:
        selection: which tasks, and the harness's options for them.

    Attributes:
        selection: the same.
        overheads: seconds beyond the model's own, of every measurement in this process.
    """

    def __init__(self, selection: TaskSelection) -> None:
        self.selection = selection
        self._expected: Mapping[str, Any] | None = None
        self.overheads: list[float] = []
        self._chats: dict[str, BuiltTasks] = {}

    @cached_property
    def built(self) -> BuiltTasks:
        """The tasks with their requests, which are built at the first use in a process; no chat
        template is applied.

        Raises:
            DeltaLensError: see `build_tasks`; or they are not those of the process that sent them.
        """
        built = build_tasks(self.selection)
        if self._expected not in (None, built.identity()):
            raise DeltaLensError(
                f"tasks {', '.join(built.tasks)}: on {platform.node()} the harness makes other "
                "requests of them than where the study was started; its version and the data of "
                "the tasks, in files or in the cache of datasets, have to be the same"
            )
        return built

    @property
    def paths(self) -> list[Path]:
        """The local files of the tasks."""
        return [*self.selection.files, *self.built.data_files]

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """That of the tasks as they were built, whatever they become while they are measured."""
        return self.built.identity()

    def built_for(self, lm: LiveLM) -> BuiltTasks:
        """Build the requests for a model.

        Args:
            lm: the harness's view of the model.

        Returns:
            `built`; or, with `apply_chat_template`, the tasks with requests in the form of the
            model's chat template. They are built once for each template.

        Raises:
            DeltaLensError: see `build_tasks`; or the model's tokenizer has no chat template.
        """
        if not self.selection.apply_chat_template:
            return self.built
        tokens = lm.tokenizer
        if not tokens.chat_template:
            raise DeltaLensError(
                "the model's tokenizer has no chat template: leave `apply_chat_template` out"
            )
        # Templates put special tokens in.
        key = repr((tokens.chat_template, tokens.special_tokens_map))
        if key not in self._chats:
            self._chats[key] = build_tasks(self.selection, lm)
        return self._chats[key]

    @property
    def building_seconds(self) -> float:
        """Seconds that loading tasks and building requests took in this process."""
        return sum(built.seconds for built in (self.built, *self._chats.values()))

    def identity(self) -> dict[str, Any]:
        """Collect everything that decides the numbers, for a study's specification.

        Returns:
            JSON values.
        """
        return {
            "limit": self.selection.limit,
            "batch_size": self.selection.batch_size,
            # The template is in the identity of the model.
            "apply_chat_template": self.selection.apply_chat_template,
            **self._identity,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Without the requests, which can refer to modules that only the harness can import."""
        return {
            "selection": self.selection,
            "overheads": [],
            "_chats": {},
            "_expected": self._identity,
        }


class TaskScoring:
    """Standard tasks that are prepared for the models of a study.

    Args:
        tasks: the tasks.
        loaded: the model that the study is about.

    Attributes:
        tasks: the same.
        notes: what a reader of the records should know.

    Raises:
        DeltaLensError: the model has no tokenizer, has no chat template to apply, is no causal
            language model, or has too few positions; or requests cannot be built.
    """

    def __init__(self, tasks: StandardTasks, loaded: LoadedModel) -> None:
        from deltalens.scoring.tasks.live_lm import TokenMemo

        if loaded.tokenizer is None:
            raise DeltaLensError("standard tasks need the model's tokenizer, and it has none")
        if not can_generate(loaded.model):
            raise DeltaLensError(
                f"standard tasks need a causal language model, not {type(loaded.model).__name__}"
            )
        self.tasks, self._selection = tasks, tasks.selection
        # The harness changes its padding.
        self._tokenizer = copy.deepcopy(loaded.tokenizer)
        self._memo = TokenMemo()
        with quiet():
            lm = self._lm(loaded.model)
            self._built = tasks.built_for(lm)
            self.notes = [*self._shortened(lm)]

    def _shortened(self, lm: LiveLM) -> Iterator[str]:
        """Notes on the tasks whose prompts the harness will cut.

        Raises:
            DeltaLensError: the model has too few positions for what a task generates.
        """
        for name, task in self._built.tasks.items():
            cut = 0
            for instance in task.instances:
                if instance.request_type != "generate_until":
                    continue
                prompt, options = instance.args
                generated = int(options.get("max_gen_toks", lm.max_gen_toks))
                if generated >= lm.max_length:
                    raise DeltaLensError(
                        f"task {name!r} generates up to {generated} tokens, and the model has "
                        f"{lm.max_length} positions"
                    )
                cut += len(lm.tok_encode(prompt)) > lm.max_length - generated
            if cut:
                yield (
                    f"{name}: {cut:,} of {len(task.instances):,} prompts are longer than the "
                    f"model's {lm.max_length:,} positions leave room for: their beginnings are "
                    "cut off, examples first"
                )

    def _lm(self, model: nn.Module, answered: Callable[[], None] = lambda: None) -> LiveLM:
        from deltalens.scoring.tasks.live_lm import LiveLM

        return LiveLM(model, self._tokenizer, self._selection.batch_size, self._memo, answered)

    def measure(
        self, model: nn.Module, report: Report = lambda done, total: None
    ) -> dict[str, Measurement]:
        """Measure a model; the harness's own numbers, to the last bit.

        Args:
            model: the model, in evaluation mode.
            report: told of the requests that are done.

        Returns:
            Measurements by name (`metric_name`), of tasks and of groups that have any.

        Raises:
            DeltaLensError: the harness fails.
        """
        import lm_eval

        begun, built, selection = time.perf_counter(), self._built, self._selection
        unsafe = selection.confirm_run_unsafe_code
        done, total = itertools.count(1), built.responses
        with quiet(), code_allowed(unsafe), seeded(built.states):
            try:
                lm = self._lm(model, lambda: report(next(done), total))
                results = lm_eval.evaluate(
                    lm=lm,
                    task_dict={"tasks": {**built.tasks}, "groups": {**built.groups}},
                    limit=selection.limit,
                    log_samples=False,
                    confirm_run_unsafe_code=unsafe,
                )
            except DeltaLensError:
                raise
            except Exception as error:  # The harness, its tasks and the model raise all kinds.
                raise DeltaLensError(
                    f"tasks {', '.join(built.tasks)}: the harness cannot measure "
                    f"{type(model).__name__}: {describe_error(error)}"
                ) from error
        self.tasks.overheads.append(time.perf_counter() - begun - lm.model_seconds)
        return {
            name: measurement
            for task, numbers in results["results"].items()
            for name, measurement in _measurements(task, numbers).items()
        }


def _measurements(task: str, numbers: Mapping[str, Any]) -> dict[str, Measurement]:
    """A task's results, which the harness has as `METRIC,FILTER` and `METRIC_stderr,FILTER`, among
    other facts about it."""
    found = {}
    for key, value in numbers.items():
        metric, comma, filter_name = key.rpartition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, Real):
            stderr = numbers.get(f"{metric}_stderr,{filter_name}")
            found[metric_name(task, metric, filter_name)] = Measurement(
                float(value),
                float(stderr) if isinstance(stderr, Real) else math.nan,
                int(numbers.get("sample_len") or 0),
            )
    return found
