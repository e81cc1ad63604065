"""`deltalens monitor`: what a probe logged of a training, finished or not."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deltalens.cli import console
from deltalens.cli.fitting import FittingTable
from deltalens.errors import DeltaLensError, RecordError
from deltalens.io.escaping import plain

if TYPE_CHECKING:
    from rich.console import Group

    from deltalens.io.records import RunRecord
    from deltalens.reports.run import RunSummary

__all__ = ["monitor"]

_SECONDS = 2.0
"""Between two looks at a run that is followed."""


def monitor(
    path: str | Path,
    *,
    follow: bool,
    no_pictures: bool,
    as_json: bool,
    quiet: bool,
    html: bool = False,
) -> None:
    """Show what a probe logged, once or until Ctrl-C.

    Args:
        path: of a run, or of a training that has one.
        follow: look again every 2 seconds.
        no_pictures: draw nothing into the run's folder.
        as_json: print one JSON object instead.
        quiet: print nothing.
        html: write the run's page beside its records; while it is followed, again and again.

    Raises:
        DeltaLensError: no run there, a damaged one, or options that exclude each other.
    """
    from deltalens.io.records import find_run, load_run
    from deltalens.reports.run import summarize_run

    if follow and (as_json or quiet):
        raise DeltaLensError("--follow shows a summary: leave out --json and --quiet")
    folder = find_run(path)
    run = load_run(folder)
    summary = _followed(folder, html) if follow else summarize_run(run)
    if not (follow or as_json or quiet):
        console.console().print(_shown(folder, summary, run))
    pictures: list[Path] = []
    if summary.steps and not no_pictures:
        from deltalens.figures import draw_figure

        pictures = draw_figure("gradients", folder, titles="on")
    pages = [_page(folder)] if html else []
    if as_json:
        files = {"pictures": [str(p) for p in pictures], "pages": [str(p) for p in pages]}
        console.print_json({**summary.as_json(), **files})
    elif not quiet:
        for picture in pictures:
            console.say(f"picture: {picture}")
        for page in pages:
            console.say(f"page:    {page}")


def _page(folder: Path) -> Path:
    from deltalens.api.reporting import report_run
    from deltalens.io.records import load_run

    return report_run(load_run(folder)).path


def _shown(folder: Path, summary: RunSummary, run: RunRecord) -> Group:
    """The run in tables, and what a reader should conclude."""
    from rich.console import Group
    from rich.text import Text

    from deltalens.reports.run_said import conclusions_of

    said = [plain(line) for line in summary.sentences()]
    concluded = [plain(line) for line in conclusions_of(run, summary)]
    return Group(
        Text(plain(folder), style="bold", overflow="fold"),
        *(Text(line, overflow="fold") for line in said),
        *(FittingTable(table) for table in summary.tables()),
        *(Text(line, overflow="fold") for line in concluded),
    )


def _followed(folder: Path, html: bool) -> RunSummary:
    """Show a run until Ctrl-C; the last summary. Its page, if one is wanted, follows as well."""
    from rich.live import Live

    from deltalens.io.records import load_run
    from deltalens.reports.run import summarize_run

    state = _state(folder)
    run = load_run(folder)
    summary = summarize_run(run)
    if html:
        _page(folder)
    with Live(_shown(folder, summary, run), console=console.console(), auto_refresh=False) as live:
        failed = False
        try:
            while True:
                time.sleep(_SECONDS)
                now = _state(folder)
                if now == state and not failed:
                    continue
                try:
                    run = load_run(folder)
                    summary = summarize_run(run)
                except RecordError:
                    # Once it may be that a table's parts are just being joined.
                    if failed:
                        raise
                    failed = True
                    continue
                failed, state = False, now
                live.update(_shown(folder, summary, run), refresh=True)
                if html:
                    _page(folder)
        except KeyboardInterrupt:
            return summary


def _state(folder: Path) -> list[tuple[str, int]]:
    """What changes whenever a part is written, or parts are joined."""
    found = []
    for part in sorted(folder.glob("*/*.parquet")):
        with suppress(FileNotFoundError):
            found.append((str(part), part.stat().st_mtime_ns))
    return found
