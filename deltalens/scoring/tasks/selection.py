"""Which standard tasks are measured, and how: what a caller chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deltalens.errors import DeltaLensError

__all__ = ["AUTO", "TaskChoice", "TaskSelection"]

AUTO = "auto"
"""A batch size that the harness finds out: the largest that fits into memory."""
_TASK_FILES = (".yaml", ".py")
"""A task's description, and the functions that it refers to."""


@dataclass(frozen=True)
class TaskChoice:
    """A task, group or tag of the harness; or a task of ours with its documents in local files."""

    name: str
    """As the harness knows it, or the path of a task's YAML file."""
    files: tuple[Path, ...] = ()
    """Local rows to measure on; then, if there are two, those that few-shot examples are from."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAME`, `NAME=FILE` or `NAME=FILE:FEWSHOT_FILE`.

        Args:
            text: as the caller gave it.

        Returns:
            The choice.

        Raises:
            DeltaLensError: the text has another form, or a file does not exist.
        """
        name, equals, rest = text.partition("=")
        files = tuple(Path(part) for part in rest.split(":")) if equals else ()
        if not name or (equals and (not rest or len(files) > 2)):
            raise DeltaLensError(
                f"task {text!r}: write NAME, NAME=FILE, or NAME=FILE:FILE, where few-shot examples "
                "are taken from the second"
            )
        missing = [str(file) for file in files if not file.exists()]
        if missing:
            raise DeltaLensError(f"task {name!r}: {', '.join(missing)}: no such file")
        return cls(name, tuple(file.resolve() for file in files))


@dataclass(frozen=True, kw_only=True)
class TaskSelection:
    """The tasks that a study measures, and the harness's options for them.

    Raises:
        DeltaLensError: an option has no possible value.
    """

    choices: tuple[TaskChoice, ...]
    include_path: Path | None = None
    """A folder with further tasks; they replace the harness's own of the same name."""
    limit: int | None = None
    """Use this many documents of each task, the first ones; None: all."""
    num_fewshot: int | None = None
    """Examples in each prompt; None: as the task has it. A task that sets 0 keeps it."""
    batch_size: int | str = 1
    """Requests per batch, or `auto`."""
    apply_chat_template: bool = False
    """Write prompts as chats, by the model's chat template; examples are turns of them."""
    confirm_run_unsafe_code: bool = False
    """Run code that the model writes, for tasks that measure it by that."""

    @property
    def files(self) -> list[Path]:
        """The local files that it names, and the task files of its folder."""
        folder = self.include_path
        inside = () if folder is None else (f for f in folder.rglob("*") if f.suffix in _TASK_FILES)
        own = (Path(choice.name) for choice in self.choices if choice.name.endswith(".yaml"))
        named = (*own, *(file for choice in self.choices for file in choice.files), *inside)
        return [file for file in named if file.is_file()]

    def __post_init__(self) -> None:
        if self.batch_size != AUTO and not (
            isinstance(self.batch_size, int) and self.batch_size >= 1
        ):
            raise DeltaLensError(f"batch size {self.batch_size!r}: a number above 0, or {AUTO!r}")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise DeltaLensError(f"num_fewshot {self.num_fewshot}: must be at least 0")
        if self.limit is not None and self.limit < 1:
            raise DeltaLensError(f"limit {self.limit}: must be at least 1")
        if self.include_path is not None and not self.include_path.is_dir():
            raise DeltaLensError(f"include_path {self.include_path}: no such folder")
        names = [choice.name for choice in self.choices]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DeltaLensError(f"tasks given more than once: {', '.join(repeated)}")

    @classmethod
    def of(
        cls,
        tasks: Sequence[str],
        *,
        include_path: str | Path | None = None,
        limit: int | None = None,
        num_fewshot: int | None = None,
        batch_size: int | str | None = None,
        apply_chat_template: bool = False,
        confirm_run_unsafe_code: bool = False,
    ) -> Self | None:
        """Check a caller's choice.

        Args:
            tasks: each as `TaskChoice.parse` takes it.
            include_path, limit, num_fewshot, apply_chat_template, confirm_run_unsafe_code: see the
                fields.
            batch_size: a number, also as text, or `auto`; None: 1, as the harness has it.

        Returns:
            The selection; None if there are no tasks.

        Raises:
            DeltaLensError: an option cannot be used, or is given without tasks.
        """
        if not tasks:
            given = {
                "include_path": include_path is not None,
                "num_fewshot": num_fewshot is not None,
                "batch_size": batch_size is not None,
                "apply_chat_template": apply_chat_template,
                "confirm_run_unsafe_code": confirm_run_unsafe_code,
            }
            useless = [name for name, is_given in given.items() if is_given]
            if useless:
                raise DeltaLensError(f"{', '.join(useless)}: of no use without `tasks`")
            return None
        if isinstance(batch_size, str) and batch_size.isdecimal():
            batch_size = int(batch_size)
        return cls(
            choices=tuple(TaskChoice.parse(task) for task in tasks),
            include_path=Path(include_path) if include_path is not None else None,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=1 if batch_size is None else batch_size,
            apply_chat_template=apply_chat_template,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
