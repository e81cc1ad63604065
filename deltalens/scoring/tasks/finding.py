"""Finding tasks by their names, and loading them with their data."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, describe_error
from deltalens.scoring.tasks.selection import TaskChoice, TaskSelection

__all__ = ["FILES", "LOCAL_FILES", "LoadedTasks", "load_tasks"]

FILES = Path(__file__).parent / "files"
"""The folder of deltalens's own tasks, which read local files; the harness's own command takes it
as its `--include_path`."""
LOCAL_FILES = "local_files"
"""The entry of a task's metadata that has its local files: name of a task -> paths."""


@dataclass
class LoadedTasks:
    """Tasks of the harness, with their data."""

    tasks: dict[str, Any] = field(default_factory=dict)
    """Name -> the harness's task, for every single task."""
    groups: dict[str, Any] = field(default_factory=dict)
    """Name -> the harness's group."""


def load_tasks(selection: TaskSelection) -> LoadedTasks:
    """Load tasks.

    Args:
        selection: which.

    Returns:
        The tasks, in the order of the selection.

    Raises:
        DeltaLensError: lm-eval is not installed; a task does not exist, cannot be loaded, takes
            pictures or sounds, or runs generated code without confirmation; its data would have to
            be downloaded, and cannot be; or two choices have a task in common.
    """
    finder = _Finder(selection)
    loaded, source = LoadedTasks(), dict[str, str]()
    for choice in selection.choices:
        found = finder.load(choice)
        for name in found["tasks"]:
            if name in source:
                raise DeltaLensError(
                    f"task {name!r} is in {source[name]!r} and in {choice.name!r}: give one of them"
                )
            source[name] = choice.name
        loaded.tasks |= found["tasks"]
        loaded.groups |= found.get("groups", {})
    multimodal = [n for n, task in loaded.tasks.items() if getattr(task, "MULTIMODAL", False)]
    if multimodal:
        raise DeltaLensError(f"task {multimodal[0]!r}: takes pictures or sounds, not only text")
    return loaded


class _Finder:
    """Looks names up in the harness's indexes, each of which is read once if it is needed."""

    def __init__(self, selection: TaskSelection) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise DeltaLensError(
                "standard tasks need lm-eval: pip install 'deltalens[eval]'"
            ) from error
        self._manager_class = TaskManager
        self._selection = selection
        self._managers: dict[bool, Any] = {}

    def load(self, choice: TaskChoice) -> Any:
        """A task, group or tag, as the harness's `TaskManager.load` returns it."""
        manager = self._manager_of(choice)
        self._check_code(manager, [choice.name])
        try:
            found = manager.load([choice.name])
        except DeltaLensError:
            raise
        except Exception as error:  # The harness, its tasks and datasets raise all kinds.
            raise DeltaLensError(_reason(choice.name, error)) from error
        unsafe = [n for n, task in found["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]
        self._refuse_code(unsafe)
        return found

    def _manager_of(self, choice: TaskChoice) -> Any:
        """The index that has the name."""
        if choice.files:
            return self._ours(choice)
        if Path(choice.name).is_file() and choice.name.endswith(".yaml"):
            return self._manager(everything=False)
        if self._selection.include_path is not None:
            # The index of all tasks takes seconds.
            local = self._manager(everything=False)
            if _is_complete(choice.name, local.task_index):
                return local
        manager = self._manager(everything=True)
        if choice.name not in manager.task_index:
            near = difflib.get_close_matches(choice.name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise DeltaLensError(f"task {choice.name!r}: there is no such task; {hint}")
        return manager

    def _manager(self, *, everything: bool) -> Any:
        if everything not in self._managers:
            include = self._selection.include_path
            self._managers[everything] = self._manager_class(
                include_path=str(include) if include is not None else None,
                include_defaults=everything,
            )
        return self._managers[everything]

    def _ours(self, choice: TaskChoice) -> Any:
        files = {choice.name: [str(file) for file in choice.files]}
        manager = self._manager_class(
            include_path=str(FILES), include_defaults=False, metadata={LOCAL_FILES: files}
        )
        if choice.name not in manager.task_index:
            ours = ", ".join(manager.all_tasks)
            raise DeltaLensError(
                f"task {choice.name!r}: deltalens reads local files for {ours}; for another task, "
                "write its YAML file with `dataset_path: json` and `data_files`, and name its "
                "folder by `include_path`"
            )
        return manager

    def _check_code(self, manager: Any, names: list[str]) -> None:
        """Refuse generated code before a task's own code is imported, where its file says so."""
        entries = (manager.task_index.get(name) for name in names)
        self._refuse_code([e.name for e in entries if e and (e.cfg or {}).get("unsafe_code")])

    def _refuse_code(self, unsafe: list[str]) -> None:
        if unsafe and not self._selection.confirm_run_unsafe_code:
            raise DeltaLensError(
                f"task {unsafe[0]!r} runs code that the model writes, with your rights on this "
                "machine: confirm it with `confirm_run_unsafe_code`, and better in a container"
            )


def _is_complete(name: str, index: Mapping[str, Any]) -> bool:
    """Whether an index has a task; or a group with everything in it."""
    entry = index.get(name)
    if entry is None or entry.kind.name == "TAG":  # Other folders may have more with this tag.
        return False
    members = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else []
    names = [
        each.get("task", each.get("group")) if isinstance(each, Mapping) else each
        for each in (members if isinstance(members, list) else [members])
    ]
    return all(isinstance(each, str) and _is_complete(each, index) for each in names)


def _reason(name: str, error: Exception) -> str:
    """Why a task cannot be loaded, and what to do."""
    if not _is_of_network(error):
        return f"task {name!r}: cannot be loaded: {describe_error(error)}"
    return (
        f"task {name!r}: its data or metric is not on this machine, and cannot be downloaded "
        f"({describe_error(error)}). Without a network, load it once where there is one and copy "
        "the cache of datasets (HF_HOME; HF_DATASETS_OFFLINE=1 and HF_HUB_OFFLINE=1 then spare the "
        "attempt), or take a task that reads a local file: gsm8k=test.jsonl, mbpp=test.jsonl, or a "
        "YAML file of your own with `dataset_path: json`, by `include_path`"
    )


def _is_of_network(error: BaseException) -> bool:
    """Whether a fetch from the hub failed. Which error says so depends on the library and on how
    far it came: datasets raises a ConnectionError, huggingface_hub one of httpx or its own, and
    evaluate a FileNotFoundError."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = (ConnectionError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return any(
        isinstance(each, kinds)
        or type(each).__module__.split(".")[0] in ("httpx", "httpcore", "requests")
        or type(each).__name__ == "DatasetNotFoundError"
        or (isinstance(each, FileNotFoundError) and "Hugging Face Hub" in str(each))
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
