"""The errors deltalens raises for bad input: one clear message, with the case in it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from types import TracebackType

__all__ = [
    "CheckpointError",
    "DataError",
    "DeltaLensError",
    "Lines",
    "PairingError",
    "RecordError",
    "describe_error",
    "errors_from",
    "fault_list",
    "is_library_error",
    "similar_names",
]

FAULTS_SHOWN = 20
_LONGEST = 500
_LONGEST_REASON = 4_000
_COMPARED, _BEGINNING = 50, 200
"""Names, and characters of each, that difflib compares: it is quadratic in both."""


class Lines(str):
    """A message of several lines: only in one made as this do line ends count. One in a part came
    with a name, and is written as an escape, lest the name writes a line of its own.

    Args:
        parts: a line each, or more where they are `Lines` themselves.
    """

    __slots__ = ()

    def __new__(cls, *parts: str) -> Lines:
        lines = (
            str(part) if isinstance(part, Lines) else part.replace("\n", "\\n") for part in parts
        )
        return super().__new__(cls, "\n".join(lines))

    def __str__(self) -> Lines:
        return self

    def __reduce__(self) -> tuple[type[Lines], tuple[str, ...]]:
        return Lines, tuple(self.split("\n"))


class DeltaLensError(Exception):
    """Something the caller gave cannot be used; the message says what, where and what to do."""


class CheckpointError(DeltaLensError):
    """A checkpoint cannot be read, or cannot be written."""


class PairingError(DeltaLensError):
    """Two checkpoints do not fit each other."""


class DataError(DeltaLensError):
    """Rows of a data file cannot be used."""


class RecordError(DeltaLensError):
    """A study or run folder cannot be used."""


def fault_list(headline: str, faults: Sequence[str]) -> Lines:
    """One message for all faults of a check: the first 20, the rest counted. A hostile name can be
    as long as its file: a fault is cut where it would fill the terminal."""
    short = (fault if len(fault) < _LONGEST else f"{fault[:_LONGEST]}..." for fault in faults)
    lines = [headline, *(f"  - {fault}" for fault in itertools.islice(short, FAULTS_SHOWN))]
    if len(faults) > FAULTS_SHOWN:
        lines.append(f"  ... and {len(faults) - FAULTS_SHOWN} more")
    return Lines(*lines)


def similar_names(name: str, names: Iterable[str], count: int, cutoff: float) -> list[str]:
    """Those names that look most like one that is not there, for a message; the likeliest first.

    difflib would take minutes over the tensors of a mixture of experts, and as long over two names
    that a hostile file made long: it sees the beginnings of those that share most parts (what dots
    separate) with it.

    Args:
        name: what was looked for.
        names: what there is.
        count: how many at most.
        cutoff: how much alike they have to be, from 0 to 1, as `difflib` counts.
    """
    import difflib

    parts = set(name.split("."))
    likely = heapq.nlargest(
        _COMPARED, names, key=lambda one: len(parts.intersection(one.split(".")))
    )
    beginnings = [one[:_BEGINNING] for one in likely]
    return difflib.get_close_matches(name[:_BEGINNING], beginnings, n=count, cutoff=cutoff)


def describe_error(error: BaseException) -> str:
    """A foreign exception as text on one line, with its kind in front. Some quote the whole file
    that they choke on: what is longer than would be read is cut."""
    said = f"{type(error).__name__}: {' '.join(str(error)[:_LONGEST_REASON].split())}"
    short = said if len(said) < _LONGEST_REASON else f"{said[:_LONGEST_REASON]}..."
    return short.removesuffix(": ")


def is_library_error(error: BaseException | None) -> bool:
    """Whether an exception is one that a library raises for what it cannot use. A panic of one
    that is written in Rust (tokenizers, safetensors) is one, though Python's `except Exception`
    lets it pass; Ctrl-C and the end of the program are not."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class errors_from:
    """Around a call of another library's: what it raises becomes one `DeltaLensError`.

    An exception that passed through a module of ours on its way (a hook, a callback) may be our own
    bug, and stays as it is; only running out of memory never is one.

    Args:
        library: whose call it is.
        failed: what did not work, with the case in it.
        hint: what to do, if there is something to say.
        kind: which error it becomes.

    Example:
        >>> with said_by("peft", "LlamaForCausalLM takes no LoRA"):
        ...     raise ValueError("no targets")
        Traceback (most recent call last):
        deltalens.errors.DeltaLensError: LlamaForCausalLM takes no LoRA: peft says: ValueError: ...
    """

    def __init__(
        self,
        library: str,
        failed: str,
        hint: str = "",
        kind: type[DeltaLensError] = DeltaLensError,
    ) -> None:
        self._library, self._failed, self._hint, self._kind = library, failed, hint, kind

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or not is_library_error(error) or isinstance(error, DeltaLensError):
            return
        if _out_of_memory(error):
            raise self._kind(
                f"{self._failed}: out of memory ({describe_error(error)}); use smaller "
                "batches, a smaller dtype or a larger device"
            ) from error
        if _passed_through_ours(trace):
            return
        hint = f"; {self._hint}" if self._hint else ""
        raise self._kind(
            f"{self._failed}: {self._library} says: {describe_error(error)}{hint}"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _passed_through_ours(trace: TracebackType | None) -> bool:
    """Whether a module of ours was called by the other library, or it was never called at all."""
    ours = []
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        ours.append(name.split(".")[0] == "deltalens")
        trace = trace.tb_next
    if all(ours):
        # A single frame is the call itself, of code that has no frames of Python's.
        return len(ours) > 1
    return any(ours[ours.index(False) :])
