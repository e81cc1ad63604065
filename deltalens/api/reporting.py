"""One page of what studies, trainings and runs found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deltalens.api.described import Arg, Opt, described
from deltalens.api.options import Files

if TYPE_CHECKING:
    from deltalens.io.records import RunRecord
    from deltalens.report_page import Page

__all__ = ["report", "report_run"]


@described
def report(
    folders: Annotated[
        Files,
        Arg("DIR...", "Studies, trainings and runs, or folders that hold some.", repeat=True),
    ],
    *,
    out: Annotated[
        str | Path, Opt("The page to write.", metavar="FILE.html", flags=("-o",), common=True)
    ] = "report.html",
    title: Annotated[str | None, Opt("Of the page (the records' names).", common=True)] = None,
) -> Page:
    """Write one page of what studies, trainings and runs found.

    On top the answer to each question that they can answer, with its number and its uncertainty;
    below, every picture with its data, the commands that repeat them, and what a reader should
    know. The page is one file that fetches nothing. Computes nothing: it is made from records, also
    of studies that are not finished.

    Args:
        folders: each a study, a training or a run, or a folder that holds some at most four levels
            down.
        out: an HTML file; one that exists is replaced.
        title: of the page.

    Returns:
        The page: its path, answers and warnings.

    Raises:
        DeltaLensError: a folder holds no record, a record is damaged or of another version, nothing
            is measured yet, or the file cannot be written.

    Example:
        >>> page = deltalens.report(["study", "run"], out="report.html")
        >>> [answer.question for answer in page.answers][0]
        'redundant'
    """
    from deltalens.api.repeating import repeat_of
    from deltalens.api.translate import paths
    from deltalens.errors import DeltaLensError
    from deltalens.report_page import check_page, find_records, write_page

    given = [Path(folder) for folder in paths(folders)]
    if not given:
        raise DeltaLensError("a report needs at least one folder of a study, training or run")
    check_page(Path(out))
    return write_page(find_records(given), Path(out), title=title or "", repeat=repeat_of)


def report_run(run: RunRecord) -> Page:
    """Write the page of a run beside its records, finished or not, as `report.html`.

    Args:
        run: as `deltalens.load_run` reads it.

    Returns:
        The page.

    Raises:
        DeltaLensError: the file cannot be written.
    """
    from deltalens.api.repeating import repeat_of
    from deltalens.report_page import Found, write_page

    found = Found(f"{run.path.resolve().parent.name}/{run.path.resolve().name}", run)
    return write_page([found], run.path / "report.html", repeat=repeat_of, may_be_empty=True)
