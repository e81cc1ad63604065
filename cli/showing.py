"""What the commands print that only read: pictures, a run, the methods, the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deltalens.cli import console
from deltalens.cli.fitting import FittingTable
from deltalens.cli.running import framed

if TYPE_CHECKING:
    from deltalens.api.drawn import Drawn
    from deltalens.cli.generate import Command, Terminal
    from deltalens.report_page import Page

__all__ = [
    "run_environment",
    "run_figure",
    "run_figures",
    "run_methods",
    "run_monitor",
    "run_plot",
    "run_report",
]

_ANSWERS = 8
"""Answers and warnings that a terminal shows; the page has all."""


def run_plot(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Redraw, and say which files that were.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    with framed(command, terminal, typed):
        pictures = command.call(typed)
        if terminal.as_json:
            console.print_json({"pictures": [str(picture) for picture in pictures]})
            return
        for picture in pictures:
            console.say(f"drawn: {picture}")


def run_figures(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """List the figures and tables, and how each is made.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    with framed(command, terminal, typed):
        figures = command.call(typed)
        if terminal.as_json:
            console.print_json({"figures": figures.to_dict("records")})
            return
        width = max(map(len, figures["figure"])) + 2
        for row in figures.itertuples(index=False):
            numbered = f"{row.paper}, {row.number}" if row.number else row.paper
            lost = " (the body of the paper's table is lost)" if row.lost else ""
            title = f"{numbered}: {row.shows}" if numbered else row.shows
            console.say(f"{row.figure:{width}}{title}{lost}")
            if not row.study:
                needs = "needs no study"
            elif row.same_as:
                needs = f"as {row.same_as}"
            else:
                many = ", one or several" if row.several else ""
                needs = f"{row.study}{many}: {row.command}"
            console.say(f"{'':{width}}{needs}")
        console.say("deltalens figure NAME STUDY ... -o FILE draws one.")


def run_figure(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Draw one, show it if it is a table, and say where it is.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    with framed(command, terminal, typed):
        drawn: Drawn = command.call(typed)
        if terminal.as_json:
            tables = [
                {"title": title, "rows": table.to_dict("records")}
                for table in drawn.tables
                for title in [table.attrs["title"]]
            ]
            files = [str(file) for file in drawn.files]
            console.print_json({"figure": drawn.name, "files": files, "tables": tables})
            return
        for drawing in drawn.drawings:
            for table in drawing.tables:
                console.console().print(FittingTable(table))
        for file in drawn.files:
            console.say(f"drawn: {file}")


def run_monitor(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Show a run, once or until Ctrl-C.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    with framed(command, terminal, typed):
        from deltalens.cli.monitor import monitor

        monitor(
            typed["folder"],
            follow=terminal.extra["follow"],
            no_pictures=typed.get("pictures") is False,
            html=bool(typed.get("html")),
            as_json=terminal.as_json,
            quiet=terminal.quiet,
        )


def run_report(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Write a page, and say what its top says.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    with framed(command, terminal, typed):
        with console.meter(terminal.quiet or terminal.as_json) as meter:
            meter.stage("drawing", None)
            page: Page = command.call(typed)
        if terminal.as_json:
            console.print_json(page.as_json())
            return
        if terminal.quiet:
            return
        for answer in page.answers[:_ANSWERS]:
            console.say(str(answer))
        if len(page.answers) > _ANSWERS:
            console.say(f"... and {len(page.answers) - _ANSWERS:,} more answers")
        for warning in page.warnings[:_ANSWERS]:
            console.say(f"warning: {warning}")
        if len(page.warnings) > _ANSWERS:
            console.say(f"... and {len(page.warnings) - _ANSWERS:,} more warnings")
        console.say(f"page:    {page.path}")


def run_methods(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """List the training methods.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    with framed(command, terminal, typed):
        methods = command.call(typed)
        if terminal.as_json:
            console.print_json({"methods": methods.to_dict("records")})
            return
        width = max(map(len, methods["method"])) + 2
        for name, settings, about in methods.itertuples(index=False):
            console.say(f"{name:{width}}{about}")
            console.say(f"{'':{width}}settings: {settings.replace(',', ', ') or 'none of its own'}")
        console.say("deltalens train METHOD --help shows a method's settings.")


def run_environment(command: Command, terminal: Terminal, typed: dict[str, Any]) -> None:
    """Print what a bug report needs.

    Args:
        command, terminal, typed: as `run_study` takes them.
    """
    with framed(command, terminal, typed):
        environment = command.call(typed)
        if terminal.as_json:
            console.print_json(environment)
            return
        for name, value in environment.items():
            console.say(f"{name + ':':14}{'-' if value is None else value}")
