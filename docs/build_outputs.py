"""Writes what the quickstart pages' commands and the notebooks' cells print.

    deltalens demo
    python docs/build_outputs.py --demo deltalens-demo/

Shell blocks are run in the order of the page, in a folder with the demo's models and rows and with
the page's files: Python blocks that have a title. A block `text` below shows the output. Of
notebooks the texts are kept, no pictures. Minutes, on two cores. Seconds are left out of what is
printed, and nothing of this machine may stand in it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = [
    "MODELS_AND_ROWS",
    "cut",
    "neutral",
    "notebook_written",
    "page_files",
    "written",
]

HERE = Path(__file__).parent
MODELS_AND_ROWS = ("base", "ft", "train.jsonl", "test.jsonl")
"""What a page's commands begin with."""
_EXAMPLE = re.compile(
    r"^```sh\n(?P<typed>.*?)^```$"
    r"(?P<shown>\n\n(?:<!-- last (?P<last>\d+) lines -->\n)?```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r'^```python title="([\w.]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_SECONDS = re.compile(r"\b\d+(?:\.\d+)? s\b")
_LEFT_OUT = "[...]"


def page_files(markdown: str) -> dict[str, str]:
    """The files that a page shows.

    Args:
        markdown: the page.

    Returns:
        A file's name -> its text.
    """
    return dict(_FILE.findall(markdown))


def neutral(printed: str, folder: Path) -> str:
    """What was printed, without what only this machine would print.

    Args:
        printed: by a command.
        folder: in which it ran.

    Returns:
        The text, with seconds left out.

    Raises:
        ValueError: it names a folder of this machine.
    """
    for path in (folder, folder.resolve(), Path.home(), HERE.parent):
        if str(path) in printed:
            raise ValueError(f"names {path}:\n{printed}")
    lines = _SECONDS.sub("... s", printed).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def cut(printed: str, last: int | None) -> str:
    """The lines of an output that a page shows.

    Args:
        printed: the output.
        last: how many lines; None is all of them.

    Returns:
        These lines, with a mark where others stood.
    """
    lines = printed.splitlines()
    if last is None or len(lines) <= last:
        return printed
    return "\n".join([_LEFT_OUT, *lines[-last:]])


def written(markdown: str, folder: Path) -> str:
    """A page with the outputs of now.

    Args:
        markdown: the page.
        folder: with the demo's models and rows.

    Returns:
        The page.

    Raises:
        ValueError: a command fails, or prints what no page should show.
    """
    for name, text in page_files(markdown).items():
        (folder / name).write_text(text, encoding="utf-8")

    def anew(found: re.Match[str]) -> str:
        printed = neutral(_run(found["typed"], folder), folder)
        if found["shown"] is None:
            return found[0]
        shown = cut(printed, int(found["last"]) if found["last"] else None)
        head = found[0][: found.start("printed") - found.start()]
        return f"{head}{shown}\n```"

    return _EXAMPLE.sub(anew, markdown)


def notebook_written(path: Path, folder: Path) -> str:
    """A notebook with the texts of now.

    Args:
        path: its file.
        folder: in which it runs; empty.

    Returns:
        The file's text.

    Raises:
        ValueError: a cell prints what no page should show.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in (each for each in notebook.cells if each.cell_type == "code"):
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                output.text = neutral(output.text, folder) + "\n"
                kept.append(output)
            elif "data" in output and "image/png" not in output.data:
                text = neutral(output.data["text/plain"], folder)
                kept.append(nbformat.v4.new_output(output.output_type, {"text/plain": text}))
        cell.outputs, cell.execution_count, cell.metadata = kept, None, {}
    # Which Python it was says nothing.
    notebook.metadata.language_info = {"name": "python"}
    return nbformat.writes(notebook) + "\n"


def _run(typed: str, folder: Path) -> str:
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"{typed}\n{done.stdout}{done.stderr}")
    return done.stdout


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", type=Path, required=True, help="as `deltalens demo` leaves it")
    parser.add_argument("pages", type=Path, nargs="*", help="all that there are, if none")
    given = parser.parse_args()
    everything = (*(HERE / "quickstart").glob("*.md"), *(HERE / "notebooks").glob("*.ipynb"))
    for page in given.pages or sorted(everything):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if page.suffix == ".ipynb":
                text = notebook_written(page, folder)
            else:
                for name in MODELS_AND_ROWS:
                    copy = shutil.copytree if (given.demo / name).is_dir() else shutil.copy
                    copy(given.demo / name, folder / name)
                text = written(page.read_text(encoding="utf-8"), folder)
            page.write_text(text, encoding="utf-8")
            print(page)


if __name__ == "__main__":
    _main()
