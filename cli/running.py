"""How commands call their functions: progress, pictures, and what is shown at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deltalens.cli import console
from deltalens.cli.fitting import FittingTable
from deltalens.cli.planning import PlanOnly, show_plan, stop_at_plan
from deltalens.errors import RecordError

if TYPE_CHECKING:
    from deltalens.api.results import Study, Training
    from deltalens.cli.generate import Command, Terminal

__all__ = ["framed", "run_drop", "run_inspect", "run_landscape", "run_study", "run_train"]


@contextmanager
def framed(command: Command, terminal: Terminal, typed: dict[str, Any]) -> Iterator[None]:
    """The frame of a command: errors, Ctrl-C, a dry run.

    Args:
        command: that is run.
        terminal: how it talks.
        typed: what was typed, by name.

    Yields:
        For the length of the command.
    """
    interrupted = command.interrupted.format(out=typed.get("out"))
    with console.command(
        terminal.debug, interrupted, as_json=terminal.as_json, options=[*command.parameters]
    ):
        if command.heavy or terminal.verbose:
            console.quieten(terminal.verbose)
        try:
            yield
        except PlanOnly as only:
            show_plan(only.plan, terminal)


def run_study(
    command: Command, terminal: Terminal, typed: dict[str, Any], on_cell: Any = None
) -> None:
    """Make a study, draw it, and say what it found. Cells that failed leave exit code 3.

    Args:
        command: whose function returns a `Study`.
        terminal: how it talks.
        typed: what was typed, by name.
        on_cell: told of every finished cell.
    """
    with framed(command, terminal, typed):
        from deltalens.figures import draw
        from deltalens.studies.engine import StudyWatch

        with console.meter(terminal.quiet or terminal.as_json) as meter:
            watch = StudyWatch(
                stage=meter.stage,
                advance=meter.advance,
                within=meter.within,
                on_plan=stop_at_plan if terminal.dry_run else None,
                **({"on_cell": on_cell} if on_cell is not None else {}),
            )
            study: Study = command.call(typed, watch=watch)
            meter.stage("drawing", None)
            drawn = draw(study.path)
        console.show(
            study,
            drawn,
            as_json=terminal.as_json,
            quiet=terminal.quiet,
            options=[*command.parameters],
        )
        if study.failures:
            raise typer.Exit(console.FAILED_CELLS)


def run_landscape(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """`run_study`, with a first picture that sharpens while the points come in.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    from deltalens.cli.sketches import Sketches

    run_study(command, terminal, typed, on_cell=Sketches().on_cell)


def run_train(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Train, draw the training's curves, and say what came of it.

    Args:
        command: whose function returns a `Training`.
        terminal: how it talks.
        typed: what was typed, by name.
    """
    with framed(command, terminal, typed):
        from deltalens.training.following import TrainingWatch

        with console.meter(terminal.quiet or terminal.as_json) as meter:
            watch = TrainingWatch(
                stage=meter.stage,
                at=meter.at,
                say=meter.say,
                on_plan=stop_at_plan if terminal.dry_run else None,
            )
            try:
                training: Training = command.call(typed, watch=watch)
            except RecordError:
                # It may have been stopped after its end and before its curves were drawn.
                if typed.get("resume") and _is_finished(typed["out"]):
                    _curves(Path(typed["out"]))
                raise
        _show_training(training, _curves(training.path), terminal)


def _is_finished(folder: str | Path) -> bool:
    from deltalens.io.records import is_training, load_training

    return is_training(folder) and load_training(folder).finished


def _curves(folder: Path) -> list[Path]:
    """Draw a training; a method that takes no step, such as a mask by size, has no curves."""
    from deltalens.figures import draw
    from deltalens.io.records import load_training

    drawn = draw(folder) if load_training(folder).logged() else []
    return [path for path in drawn if path.suffix == ".png"]


def _show_training(training: Training, pictures: list[Path], terminal: Terminal) -> None:
    if terminal.as_json:
        console.print_json(
            {**training.as_json(), "pictures": [str(picture) for picture in pictures]}
        )
        return
    if terminal.quiet:
        return
    for line in training.summary().splitlines():
        console.say(line)
    console.say(f"model:   {training.path}")
    for name, path in (("masks", training.masks), ("adapter", training.adapter)):
        if path:
            console.say(f"{name + ':':9}{path}")
    for picture in pictures:
        console.say(f"drawn:   {picture}")
    if training.run:
        console.say(f"run:     {training.run}  (deltalens monitor {training.run})")


def run_inspect(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Inspect a delta, and print its tables.

    Args:
        command: whose function returns an `Inspection`.
        terminal: how it talks.
        typed: what was typed, by name; `tensors` is this command's own.
    """
    with framed(command, terminal, typed):
        import deltalens.studies.inspect  # noqa: F401 - loading torch is no part of the stage

        with console.meter(terminal.quiet or terminal.as_json) as meter:
            meter.stage("inspecting", None)
            found = command.call(typed, progress=meter.at)
        pictures: list[Path] = []
        if typed.get("out") is not None:
            from deltalens.figures import draw

            pictures = draw(typed["out"])
        if terminal.as_json:
            console.print_json({**found.as_json(), "pictures": [str(p) for p in pictures]})
            return
        if terminal.quiet:
            return
        from deltalens.reports.inspect import LEVELS

        levels = (*LEVELS, *(("tensor",) if terminal.extra["tensors"] else ()))
        for table in found.report().tables(levels):
            console.console().print(FittingTable(table))
        for sentence in found.report().sentences():
            console.say(sentence)
        for note in console.notes(found.pairing):
            console.say(f"note: {note}")
        if typed.get("out") is not None:
            console.say(f"table:   {Path(typed['out']) / 'cells.csv'}")
        for picture in pictures:
            console.say(f"picture: {picture}")


def run_drop(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Write a checkpoint with part of its delta put back, and say how much that was.

    Args:
        command: whose function returns a `DropResult`.
        terminal: how it talks.
        typed: what was typed, by name.
    """
    with framed(command, terminal, typed):
        import deltalens.studies.drop  # noqa: F401 - loading torch is no part of the stage

        with console.meter(terminal.quiet or terminal.as_json) as meter:
            meter.stage("dropping", None)
            result = command.call(typed, progress=meter.at)
        if terminal.as_json:
            console.print_json(result.as_json())
        elif not terminal.quiet:
            for line in result.summary().splitlines():
                console.say(line)
            for note in console.notes(result.pairing):
                console.say(f"note: {note}")
            console.say(f"written: {result.out}")
