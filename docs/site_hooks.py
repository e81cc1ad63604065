"""What the site has beside the pages of docs/: help texts, notebooks, and pages of the root.

Links are written for a code host, where they lead from file to file; here they are turned to the
pages that the files become.
"""

from __future__ import annotations

import json
import os.path
import posixpath
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

__all__ = [
    "commands",
    "folded",
    "notebook_page",
    "on_files",
    "on_page_markdown",
    "on_startup",
    "site_path",
]

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "build/package/deltalens"
OF_THE_ROOT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
NOT_SEARCHED = ("CHANGELOG.md",)
"""They mention everything."""
COMMANDS_GO_HERE = "<!-- every command -->"
OUTPUT = re.compile(r"(^```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
COLUMNS, A_SENTENCE = 80, 120
"""What a page has room for, and what only sentences are longer than."""
BETWEEN_COLUMNS = "  "
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Lay the package out as setup.py installs it, for the pages of functions and classes."""
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for part in [*(ROOT / "deltalens").iterdir(), ROOT / "cli", ROOT / "figures"]:
        link = PACKAGE / part.name
        link.unlink(missing_ok=True)
        link.symlink_to(part)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files which are no pages."""
    for name in OF_THE_ROOT:
        text = (ROOT / name).read_text(encoding="utf-8")
        if name in NOT_SEARCHED:
            text = f"---\nsearch:\n  exclude: true\n---\n{text}"
        files.append(File.generated(config, name, content=text))
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        page = notebook_page(file.content_string, Path(file.src_uri).name)
        files.append(File.generated(config, site_path(f"docs/{file.src_uri}"), content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the help texts, and turn links from files to pages."""
    if COMMANDS_GO_HERE in markdown:
        markdown = markdown.replace(COMMANDS_GO_HERE, "\n\n".join(commands()))
    markdown = OUTPUT.sub(lambda found: f"{found[1]}{folded(found[2])}{found[3]}", markdown)
    here = page.file.src_uri
    source = here if here in OF_THE_ROOT else f"docs/{here}"

    def turned(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        target = site_path(file)
        if target is None:
            return link[1]
        return os.path.relpath(target, posixpath.dirname(here) or ".").replace(os.sep, "/")

    return LINK.sub(turned, markdown)


def folded(output: str) -> str:
    """An output whose sentences fit the page; rows of tables stay as they are.

    Args:
        output: its lines.

    Returns:
        The same, in more lines.
    """
    lines = []
    for line in output.splitlines():
        text = line.strip()
        indent = line[: len(line) - len(line.lstrip())]
        if len(line) <= A_SENTENCE or BETWEEN_COLUMNS in text or " " not in text:
            lines.append(line)
        else:
            lines += textwrap.wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent)
    return "".join(f"{line}\n" for line in lines)


def site_path(file: str) -> str | None:
    """Where a file of the repository is on the site.

    Args:
        file: its path from the root.

    Returns:
        The page's or file's path from the site's root, with its source's suffix; None of a file
        that is not on the site.
    """
    if file == "README.md":
        return "index.md"
    if file in OF_THE_ROOT:
        return file
    if file.startswith("docs/"):
        return re.sub(r"\.ipynb$", ".md", file.removeprefix("docs/"))
    return None


def commands() -> Iterator[str]:
    """Everything that can be typed, as the program itself says it.

    Yields:
        A section for each command.
    """
    import typer.main
    from typer.testing import CliRunner

    from deltalens.cli.main import app

    def below(command: Any, words: tuple[str, ...]) -> Iterator[str]:
        names = command.list_commands(None) if hasattr(command, "list_commands") else ()
        flag = "--help" if names else "--help-all"
        done = CliRunner().invoke(app, [*words, flag], prog_name="deltalens")
        if done.exit_code:
            raise RuntimeError(f"{' '.join(words)} {flag}: {done.output}")
        level = "#" * (len(words) + 1) if words else "##"
        yield f"{level} `{' '.join(('deltalens', *words))}`\n\n```text\n{done.output.strip()}\n```"
        for name in names:
            yield from below(command.get_command(None, name), (*words, name))

    yield from below(typer.main.get_command(app), ())


def notebook_page(source: str, name: str) -> str:
    """A notebook as a page: its texts, its code, and what was printed.

    Args:
        source: the notebook's file, as text.
        name: of the file, for those who want it.

    Returns:
        The page.
    """
    parts = []
    for cell in json.loads(source)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            shown = output.get("text") or output.get("data", {}).get("text/plain", [])
            parts.append(f"```text\n{''.join(shown).rstrip()}\n```")
    parts.append(f'<a href="{name}" download>This notebook as a file</a>')
    return "\n\n".join(parts)
