"""The site is built strictly, and fetches nothing when it is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import deltalens
from tests.architecture.commands import root_command, working_commands
from tests.architecture.import_graph import ROOT
from tests.support.shown_commands import docs_module

pytestmark = pytest.mark.slow

FETCHED_BY = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
    "use": "href",
    "image": "href",
}
"""An element -> the attribute whose address a browser loads."""
IN_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")
ELSEWHERE = re.compile(r"(?:https?:)?//")


class _Fetches(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        addresses = [values.get(FETCHED_BY.get(tag, ""), "")]
        if tag == "link" and values.get("rel") not in {"canonical", "next", "prev"}:
            addresses.append(values.get("href", ""))
        self.found += [each for each in addresses if ELSEWHERE.match(each)]
        self.found += IN_STYLE.findall(values.get("style", ""))
        if "mermaid" in values.get("class", "").split():
            self.found.append("mermaid, which the theme loads from the network")


def fetched(html: str) -> list[str]:
    """What a browser would load from elsewhere to show a page."""
    reader = _Fetches()
    reader.feed(html)
    return [*reader.found, *IN_STYLE.findall(html)]


def build(out: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """What `make docs` does."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module)
    command = ["mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(out)]
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = build(out)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


@pytest.mark.parametrize("fault", ["[x](other.md)", "[x](index.md#none)", "orphan"])
def test_a_planted_fault_ends_the_build(fault: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Page\n\n{fault}\n", encoding="utf-8")
    if fault == "orphan":
        (docs / "orphan.md").write_text("# Page\n", encoding="utf-8")
    ours = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    checks = ours[ours.index("validation:") : ours.index("hooks:")]
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: planted\nnav: [index.md]\n{checks}", encoding="utf-8")
    built = build(tmp_path / "site", config)
    assert built.returncode == 1
    assert "1 warnings in strict mode" in built.stdout + built.stderr


def pages(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        yield path.relative_to(site).as_posix(), path.read_text(encoding="utf-8")


def test_a_page_fetches_nothing(site: Path) -> None:
    found = {name: addresses for name, text in pages(site) if (addresses := fetched(text))}
    assert found == {}
    assert len([*pages(site)]) > 20


def test_a_style_fetches_nothing(site: Path) -> None:
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert [found for style in styles for found in IN_STYLE.findall(style)] == []
    assert styles


def test_every_command_has_its_help(site: Path) -> None:
    page = (site / "cli.html").read_text(encoding="utf-8")
    missing = []
    for words, command in working_commands(root_command()):
        _, _, section = page.partition(f"<code>{' '.join(('deltalens', *words))}</code>")
        section = section.partition("</pre>")[0]
        flags = [flag for each in command.params for flag in each.opts if flag.startswith("-")]
        missing += [f"{' '.join(words)} {flag}" for flag in flags if flag not in section]
    assert missing == []


def test_every_public_name_is_described(site: Path) -> None:
    text = "".join(page for name, page in pages(site) if name.startswith("api/"))
    assert [name for name in deltalens.__all__ if f'id="deltalens.{name}"' not in text] == []


def test_sentences_of_an_output_are_folded_and_tables_are_not() -> None:
    pytest.importorskip("mkdocs")
    folded = docs_module("site_hooks").folded
    table = f" a{'  b' * 60}\n {'─' * 130}\n\n short\n"
    assert folded(table) == table
    sentence = f"  {'word ' * 40}end\n"
    assert folded(sentence).split() == sentence.split()
    assert all(
        len(line) <= 80 and line.startswith("  w") for line in folded(sentence).splitlines()[:-1]
    )


def test_options_of_a_function_are_on_its_page(site: Path) -> None:
    page = (site / "api" / "models.html").read_text(encoding="utf-8")
    assert "<code>fidelity_tokens</code>" in page
    assert "Annotated" not in page


def test_what_the_gallery_is_drawn_from_stays_out(site: Path) -> None:
    assert not (site / "gallery" / "records").exists()
    assert not [*site.rglob("*.py"), *site.rglob("*.yaml")]
    assert [*(site / "gallery").rglob("*.svg")]


def test_notebooks_are_pages_and_files(site: Path) -> None:
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert f'href="{path.name}"' in page
        assert (site / "notebooks" / path.name).is_file()


def test_links_to_files_of_the_root_lead_to_pages(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    article = page.partition("<article")[2].partition("</article>")[0]
    assert 'href="SECURITY.html"' in article


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<link rel="preconnect" href="https://fonts.example.org">',
        '<img src="http://example.org/a.png">',
        "<style>@font-face { src: url(https://example.org/a.woff) }</style>",
        '<p style="background: url(//example.org/a.png)">',
        '<pre class="mermaid">graph</pre>',
    ],
)
def test_a_planted_address_is_found(html: str) -> None:
    assert len(fetched(html)) >= 1


def test_a_link_is_not_fetched() -> None:
    assert fetched('<a href="https://example.org">x</a><script src="a.js"></script>') == []
