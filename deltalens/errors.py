"""The errors that deltalens raises for unusable input, and helpers that build their messages."""

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
"""Limits on what difflib compares, which is quadratic in both: the number of names, and the number
of characters of each."""


class Lines(str):
    """A message of several lines.

    Only the line breaks between the parts count. A line break inside a part comes from a file or
    tensor name, and is escaped, so that a hostile name cannot forge a line of the message.

    Args:
        parts: one line each; a part that is itself a `Lines` keeps its line breaks.
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
    """Input that cannot be used; the message says what is wrong, where, and what to do."""


class CheckpointError(DeltaLensError):
    """A checkpoint cannot be read or written."""


class PairingError(DeltaLensError):
    """Two checkpoints do not match each other."""


class DataError(DeltaLensError):
    """Rows of a data file cannot be used."""


class RecordError(DeltaLensError):
    """A study folder or run folder cannot be used."""


def fault_list(headline: str, faults: Sequence[str]) -> Lines:
    """Combine all faults that a check found into one message.

    The first 20 are listed and the rest counted. A fault is cut at 500 characters, because a
    hostile name can be as long as the file it comes from.

    Args:
        headline: first line of the message.
        faults: one line each.

    Returns:
        The headline, and one indented bullet per fault.
    """
    short = (fault if len(fault) < _LONGEST else f"{fault[:_LONGEST]}..." for fault in faults)
    lines = [headline, *(f"  - {fault}" for fault in itertools.islice(short, FAULTS_SHOWN))]
    if len(faults) > FAULTS_SHOWN:
        lines.append(f"  ... and {len(faults) - FAULTS_SHOWN} more")
    return Lines(*lines)


def similar_names(name: str, names: Iterable[str], count: int, cutoff: float) -> list[str]:
    """Find the names most similar to one that does not exist, for an error message.

    difflib would take minutes over the tensors of a mixture of experts, and as long over two names
    that a hostile file made long. It therefore compares only the beginnings of the 50 names that
    share most dot-separated parts with `name`.

    Args:
        name: the name that was looked up.
        names: the names that exist.
        count: how many to return at most.
        cutoff: the least similarity, from 0 to 1, as `difflib` defines it.

    Returns:
        The similar names, the most similar first.
    """
    import difflib

    parts = set(name.split("."))
    likely = heapq.nlargest(
        _COMPARED, names, key=lambda candidate: len(parts.intersection(candidate.split(".")))
    )
    beginnings = [candidate[:_BEGINNING] for candidate in likely]
    return difflib.get_close_matches(name[:_BEGINNING], beginnings, n=count, cutoff=cutoff)


def describe_error(error: BaseException) -> str:
    """Describe an exception on one line, as "Type: message".

    Some libraries quote the whole file that they fail on, so the text is cut at 4,000 characters.

    Args:
        error: any exception.

    Returns:
        The description; the type alone if the exception has no message.
    """
    text = f"{type(error).__name__}: {' '.join(str(error)[:_LONGEST_REASON].split())}"
    short = text if len(text) < _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
    return short.removesuffix(": ")


def is_library_error(error: BaseException | None) -> bool:
    """Tell whether an exception is a library's way of refusing its input.

    This includes panics of libraries written in Rust (tokenizers, safetensors), which do not derive
    from `Exception`. It excludes Ctrl-C and the end of the program.

    Args:
        error: an exception; None is no error.

    Returns:
        True if the exception may be turned into a `DeltaLensError`.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class errors_from:
    """Context manager that turns what another library raises into one `DeltaLensError`.

    An exception that passed through a deltalens module on its way (a hook, a callback) may be a bug
    of ours, and is left as it is, unless the machine ran out of memory.

    Args:
        library: name of the library that is called.
        failed: what failed, naming the file or model concerned.
        hint: what to do about it; may be empty.
        kind: the error class to raise.

    Raises:
        DeltaLensError: the call raised something; of class `kind`.

    Example:
        >>> with errors_from("peft", "this model takes no LoRA"):
        ...     raise ValueError("no targets")
        Traceback (most recent call last):
        deltalens.errors.DeltaLensError: this model takes no LoRA: peft says: ValueError: no targets
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
    """Whether the library called a deltalens module, or was never reached at all."""
    ours = []
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        ours.append(name.split(".")[0] == "deltalens")
        trace = trace.tb_next
    if all(ours):
        # A single frame is the call itself: compiled code has no Python frames.
        return len(ours) > 1
    return any(ours[ours.index(False) :])
