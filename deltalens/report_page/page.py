"""A page of sections: put together by Jinja, and written whole."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, Lines, RecordError
from deltalens.io.escaping import plain, plain_lines
from deltalens.io.files import write_whole
from deltalens.io.tables import Table
from deltalens.io.version import version
from deltalens.report_page.alike import grouped
from deltalens.report_page.csv_text import as_csv, as_link
from deltalens.report_page.finding import Found, Record
from deltalens.report_page.section import Repeat, Section, section_of
from deltalens.reports.answers import QUESTIONS, Answer

__all__ = ["LARGEST", "Page", "check_page", "write_page"]

LARGEST = 5_000_000
"""Bytes of a page; pictures that would make it larger are left out, the heaviest first."""
_FRAME = 0.75
"""Share of it that pictures and cells may take, beside all else."""
_ENDINGS = (".html", ".htm")
_PER_CENT = re.compile(r"(\d) %")
_FILES = Path(__file__).with_name("files")


@dataclass(frozen=True, repr=False)
class Page:
    """A page that was written."""

    path: Path
    """The file."""
    answers: tuple[Answer, ...]
    """To the questions on its top."""
    warnings: tuple[str, ...]
    """What a reader should know, each once."""
    records: tuple[str, ...]
    """Names of the studies, trainings and runs on it."""

    def __repr__(self) -> str:
        count = f"{len(self.records):,} record{'s' * (len(self.records) != 1)}"
        return f"<Page {plain(self.path)}: {count}, {len(self.warnings):,} warnings>"

    def as_json(self) -> dict[str, Any]:
        """Everything, for scripts.

        Returns:
            JSON values by name.
        """
        return {
            "page": str(self.path),
            "records": list(self.records),
            "answers": [vars(answer) for answer in self.answers],
            "warnings": list(self.warnings),
        }


def check_page(out: Path) -> None:
    """Refuse a file that no page can be written to.

    Args:
        out: the file.

    Raises:
        DeltaLensError: its name does not end in `.html`, it is a folder, or it has none.
    """
    if out.suffix.lower() not in _ENDINGS:
        raise DeltaLensError(f"{out}: a page is an HTML file: name it report.html, say")
    if out.is_dir():
        raise DeltaLensError(f"{out}: a folder; a page is a file")
    if not out.parent.is_dir():
        raise DeltaLensError(f"{out}: its folder {out.parent} does not exist")


def write_page(
    found: Sequence[Found],
    out: Path,
    *,
    title: str = "",
    repeat: Callable[[Record], Repeat | None] | None = None,
    may_be_empty: bool = False,
) -> Page:
    """Write a page.

    Args:
        found: its records.
        out: an HTML file; one that exists is replaced.
        title: of the page; by default made of the records' names.
        repeat: says which command makes a record again.
        may_be_empty: write a page on which nothing is measured yet, as of a run that has just
            begun.

    Returns:
        What was written.

    Raises:
        RecordError: a record is damaged, or in none of them anything is measured yet.
        DeltaLensError: the file cannot be written (`check_page`).
    """
    check_page(out)
    sections = [section_of(each, number, repeat) for number, each in enumerate(found, 1)]
    if not may_be_empty and all(section.is_empty for section in sections):
        said = "; ".join(f"{each.name}: {', '.join(each.caveats)}" for each in sections[:3])
        raise RecordError(f"nothing to report, as nothing is measured yet ({said})")
    sections = _fitted(sections)
    write_whole(out, _render(sections, title).encode())
    return Page(
        out,
        tuple(answer for section in sections for answer in section.answers),
        tuple(dict.fromkeys(caveat for section in sections for caveat in section.caveats)),
        tuple(section.name for section in sections),
    )


def _fitted(sections: list[Section]) -> list[Section]:
    """Sections without the heaviest pictures, so that the page stays below its largest size."""
    room = int(LARGEST * _FRAME)
    sizes = {
        (section.mark, at): picture.size
        for section in sections
        for at, picture in enumerate(section.pictures)
    }
    room -= sum(_size(section.cells) for section in sections)
    excess = sum(sizes.values()) - room
    out: set[tuple[str, int]] = set()
    for key, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if excess <= 0:
            break
        out.add(key)
        excess -= size
    return [
        replace(
            section,
            pictures=[
                replace(picture, svg="", png="", curves="", tables=(), csv="", left_out=True)
                if (section.mark, at) in out
                else picture
                for at, picture in enumerate(section.pictures)
            ],
        )
        for section in sections
    ]


def _size(cells: Table | None) -> int:
    """Bytes of a table of cells: once as CSV, and its first rows as HTML."""
    if cells is None:
        return 0
    text = sum(len(cell) + 1 for row in cells.rows for cell in row)
    return text + 14 * len(cells.columns) * min(len(cells.rows), 300)


def _render(sections: Sequence[Section], title: str) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FILES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html")
    return page.render(
        title=title or _title(sections),
        version=version(),
        sections=sections,
        groups=grouped(sections),
        questions=[*_questions(sections)],
        warnings=_warnings(sections),
        counts=_counts(sections),
        style=_markup((_FILES / "page.css").read_text(encoding="utf-8")),
        script=_markup(script),
        script_digest=digest,
        markup=_markup,
        csv_link=as_link,
        csv_of=lambda *tables: as_link(as_csv(tables)),
        file_name=_file_name,
        glued=_glued,
        flat=lambda text: " ".join(str(text).split()),
    )


def _shown(value: Any) -> Any:
    """Names come from files: characters that cannot be seen, or that turn a line around, are
    spelled out. What is markup has been made here."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return plain_lines(value) if isinstance(value, Lines) else plain(value)


def _markup(text: str) -> Any:
    import markupsafe

    return markupsafe.Markup(text)


def _file_name(*parts: str) -> str:
    """A name for a download, without what a file system minds."""
    text = "-".join(parts)
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in text)[:120]


def _title(sections: Sequence[Section]) -> str:
    return sections[0].name if len(sections) == 1 else f"What {_counts(sections)} found"


def _glued(text: str) -> str:
    """Text in which no line ends between a number and its `%`."""
    return _PER_CENT.sub("\\1\u00a0%", text)


def _questions(
    sections: Sequence[Section],
) -> Iterator[tuple[str, str, list[tuple[Section, Answer]]]]:
    for key, question in QUESTIONS.items():
        given = [
            (section, answer)
            for group in grouped(sections)
            for section in group.sections
            for answer in section.answers
            if answer.question == key
        ]
        if given:
            yield key, question, given


def _warnings(sections: Sequence[Section]) -> Mapping[str, list[Section]]:
    """Each warning once, with the sections that it is about."""
    found: dict[str, list[Section]] = {}
    for section in sections:
        for caveat in section.caveats:
            found.setdefault(caveat, []).append(section)
    return found


def _counts(sections: Sequence[Section]) -> str:
    kinds = [section.kind for section in sections]
    counts = {
        "run": kinds.count("run"),
        "training": kinds.count("training"),
    }
    counts = {"study": len(kinds) - sum(counts.values()), **counts}
    plural = {"study": "studies"}
    said = [
        f"{count} {name if count == 1 else plural.get(name, f'{name}s')}"
        for name, count in counts.items()
        if count
    ]
    return ", ".join(said[:-1]) + (" and " if len(said) > 1 else "") + said[-1]
