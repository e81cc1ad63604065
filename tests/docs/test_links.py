"""Links of README and the pages lead somewhere: files exist, and anchors are headings."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.import_graph import ROOT

FENCED = re.compile(r"^( *)(```+).*?^\1\2`*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
FRAGMENTS = ROOT / "docs" / "gallery"
"""Parts that docs/gallery.md is made of."""
TEXTS = [
    *sorted(ROOT.glob("*.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if FRAGMENTS not in page.parents),
    *sorted((ROOT / "docs").rglob("*.ipynb")),
]


def text_of(page: Path) -> str:
    """A page's Markdown; of a notebook that of its texts."""
    source = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return source
    cells = json.loads(source)["cells"]
    return "\n\n".join("".join(each["source"]) for each in cells if each["cell_type"] == "markdown")


def anchors(text: str) -> set[str]:
    """The anchors that code hosts and the site give to a text's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCED.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(text: str) -> Iterator[tuple[str, str]]:
    """File and anchor of each link inside the repository."""
    for found in LINK.finditer(CODE.sub("", FENCED.sub("", text))):
        yield found[1], found[2] or ""


def broken(page: Path, root: Path = ROOT) -> list[str]:
    """The links of a page that lead nowhere."""
    faults = []
    for file, anchor in links(text_of(page)):
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            faults.append(f"{file}: no such file")
        elif not target.is_relative_to(root):
            faults.append(f"{file}: outside of the repository")
        elif anchor and anchor not in anchors(text_of(target)):
            faults.append(f"{file}#{anchor}: no such heading")
    return faults


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_there_are_many() -> None:
    assert sum(len([*links(text_of(page))]) for page in TEXTS) > 60


def test_planted_ones_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A *title*, `x` (y)\n\n## Twice\n\n## Twice\n\n"
        "[a](#a-title-x-y) [b](#twice-1) [c](page.md) [d](https://example.org/none)\n"
        "[e](#title) [f](no.md) [g](page.md#thrice) [h](..)\n"
        "`[i](no.md)`\n\n```text\n[j](no.md)\n```\n"
    )
    assert [fault.partition(": ")[0] for fault in broken(page, tmp_path)] == [
        *("#title", "no.md", "page.md#thrice", "..")
    ]
