"""What every command shows: progress with the time left, and errors as one clear message."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from deltalens.cli.fitting import FittingTable
from deltalens.errors import DeltaLensError, Lines
from deltalens.io.escaping import plain, plain_lines
from deltalens.io.stopping import on_request

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from deltalens.io.pairing import Pairing
    from deltalens.io.records import StudyRecord

__all__ = [
    "FAILED_CELLS",
    "Meter",
    "command",
    "console",
    "meter",
    "notes",
    "print_json",
    "quieten",
    "report",
    "say",
    "say_trace",
    "show",
]

BAD_INPUT, FAILED_CELLS, INTERRUPTED = 2, 3, 130
_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def command(
    debug: bool,
    interrupted: str = "stopped; nothing was written",
    *,
    as_json: bool = False,
    options: Sequence[str] = (),
) -> Iterator[None]:
    """The frame of a command: an error becomes one message, Ctrl-C what it means here.

    A `DeltaLensError` leaves exit code 2; Ctrl-C (or a polite kill, or a terminal that closes) 130.

    Args:
        debug: show where an error comes from.
        interrupted: what Ctrl-C leaves.
        as_json: print an error as JSON on standard output, too.
        options: names of the command's parameters: a message that names one as an argument names
            the option instead.

    Yields:
        For the length of the command.
    """
    shown, warnings.showwarning = warnings.showwarning, _warn
    try:
        with on_request(signal.default_int_handler):
            yield
    except DeltaLensError as error:
        if debug:
            say_trace()
        report(error, as_json=as_json, options=options, quiet=debug)
        raise typer.Exit(BAD_INPUT) from error
    except KeyboardInterrupt as error:
        if debug:
            raise
        say("", err=True)
        say(f"deltalens: {interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from error
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from error
    finally:
        warnings.showwarning = shown


def report(
    error: DeltaLensError, *, as_json: bool, options: Sequence[str] = (), quiet: bool = False
) -> None:
    """Say what is wrong, on standard error and as JSON.

    Args:
        error: what is wrong.
        as_json: print an object on standard output, too.
        options: names of the command's parameters, which are shown as they are typed.
        quiet: nothing on standard error.
    """
    message = _as_typed(str(error), options)
    if not quiet:
        several = error.args and isinstance(error.args[0], Lines)
        say(Lines(*message.split("\n")) if several else message, err=True, before="deltalens: ")
    if as_json:
        kind = type(error).__name__
        print_json({"error": {"kind": kind, "message": message, "exit_code": BAD_INPUT}})


def _as_typed(message: str, options: Sequence[str]) -> str:
    """A message with `--eval-data` where the library says `eval_data`; paths stay as they are."""
    names = sorted((name for name in options if "_" in name), key=len, reverse=True)
    quoted = rf"`({'|'.join(map(re.escape, sorted(options, key=len, reverse=True)))})`"
    if options:
        message = re.sub(quoted, _flag, message)
    if names:
        bare = rf"(?<![\w./\\-])({'|'.join(map(re.escape, names))})(?![\w./\\])"
        message = re.sub(bare, _flag, message)
    return message


def _flag(match: re.Match[str]) -> str:
    return f"--{match[1].replace('_', '-')}"


def say(text: object, err: bool = False, before: str = "") -> None:
    """Print a line, or the lines of `Lines`: whatever is in it, a terminal shows it and obeys
    nothing of it.

    Args:
        text: to be printed; of an exception or a warning its message.
        err: on standard error.
        before: our own words in front of it.
    """
    typer.echo(f"{before}{plain_lines(text)}", err=err)


def say_trace() -> None:
    """Print where the exception that is being handled comes from."""
    for line in traceback.format_exc().rstrip().split("\n"):
        say(line, err=True)


def _warn(message: object, category: type, *_: object, **__: object) -> None:
    """As Python shows a warning, in one line."""
    say(message, err=True, before=f"{category.__name__}: ")


class _PlainLog(logging.Formatter):
    """What another library logs can quote a file."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def console() -> Console:
    """Make the console that results are printed on.

    Returns:
        It has no color under NO_COLOR or into a pipe, and is 120 columns wide there.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(highlight=False, markup=False, emoji=False, width=width)


def print_json(value: Any) -> None:
    """One JSON object, with null for what is not a finite number."""
    import json

    from deltalens.io.plain_json import encode_finite

    # DEL is the one control character that json leaves as it is.
    for line in json.dumps(encode_finite(value), indent=2).replace("\x7f", r"\u007f").split("\n"):
        say(line)


def quieten(verbose: bool = False) -> None:
    """Keep transformers' own bars and notices off the terminal: deltalens says what matters. What
    one library will rename in another is no news to a user.

    Args:
        verbose: let all libraries log what they do, instead.
    """
    if verbose:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("matplotlib").setLevel(logging.WARNING)
        for root_handler in logging.getLogger().handlers:
            root_handler.setFormatter(_PlainLog(logging.BASIC_FORMAT))
        return
    from transformers.utils import logging as theirs

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
    theirs.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    theirs.disable_progress_bar()
    for handler in (logging.lastResort, *logging.getLogger("transformers").handlers):
        if handler is not None:
            handler.setFormatter(_PlainLog())


class Meter:
    """Progress of one stage after another, on stderr: a bar on a terminal, else plain lines."""

    def __init__(self, bar: Progress | None, quiet: bool) -> None:
        self._bar, self._quiet = bar, quiet
        self._name, self._total, self._done = "", 0, 0
        self._part = 0.0
        self._said = time.monotonic()
        self._first: tuple[float, float] | None = None
        """When the stage first got on, and how far: what it does before that is no part of its
        pace."""
        self._task: Any = None
        self._latest = ""

    def stage(self, name: str, total: int | None) -> None:
        """A stage begins."""
        name = plain(name)
        self._name, self._total, self._done, self._latest = name, total or 0, 0, ""
        self._part = 0.0
        self._said, self._first = time.monotonic(), None
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=total)

    def advance(self, steps: int) -> None:
        """So many steps of it are done."""
        self._done += steps
        self._show()

    def within(self, steps: float) -> None:
        """So much of the steps that are being taken is done, all together."""
        self._part = steps
        self._show()

    def _show(self) -> None:
        done = self._done + self._part
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        begun, before = self._first = self._first or (now, done)
        if not self._quiet and self._total and now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            left = math.nan
            if done > before:
                left = (now - begun) * (self._total - done) / (done - before)
            say(
                f"{self._name}: {100 * done // self._total:.0f} % done{_left(left)}{self._latest}",
                err=True,
            )

    def say(self, text: str) -> None:
        """The stage's latest figures, beside its name."""
        text = plain(text)
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._name}  {text}")
        self._latest = f", {text}"

    def at(self, done: int, total: int) -> None:
        """So much of the stage is done in all."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)
        self.advance(done - self._done)


def _left(seconds: float) -> str:
    return f", {_clock(seconds)} left" if math.isfinite(seconds) else ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def meter(quiet: bool) -> Iterator[Meter]:
    """Show progress on standard error for the duration of the work.

    Args:
        quiet: show none.

    Yields:
        What is told of it.
    """
    if quiet or not sys.stderr.isatty():
        yield Meter(None, quiet)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeLeft(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Meter(bar, quiet)


def notes(pairing: Pairing) -> list[str]:
    """List what a reader should know about a pairing.

    Args:
        pairing: of two checkpoints.

    Returns:
        Its notes, and how many tensors stay as they are, by reason.
    """
    reasons: dict[str, int] = {}
    for why in pairing.kept.values():
        reasons[why] = reasons.get(why, 0) + 1
    return [*pairing.notes, *(f"{n} tensors stay: {why}" for why, n in reasons.items())]


def show(
    record: StudyRecord,
    pictures: list[Path],
    *,
    as_json: bool,
    quiet: bool,
    options: Sequence[str] = (),
) -> None:
    """Print what a study found, and where it lies.

    Args:
        record: of the study.
        pictures: that were drawn.
        as_json: print one JSON object, instead of tables and sentences.
        quiet: print nothing.
        options: names of the command's parameters, which are shown as they are typed.
    """
    from deltalens.reports import failed_cells, summarize, task_costs

    summary = summarize(record)
    if as_json:
        failed = [{**vars(failure)} for failure in record.failures]
        drawn = [str(path) for path in pictures]
        print_json({**summary.as_json(), "failed": failed, "pictures": drawn})
        return
    if quiet:
        return
    for table in summary.tables():
        console().print(FittingTable(table))
    for sentence in summary.sentences():
        say(sentence if isinstance(sentence, Lines) else _as_typed(str(sentence), options))
    for sentence in [*task_costs(record), *failed_cells(record)]:
        say(sentence)
    for note in record.facts.get("notes", []):
        say(f"note: {note}")
    say(f"table:   {record.path / 'cells.csv'}")
    for picture in pictures:
        say(f"picture: {picture}")
