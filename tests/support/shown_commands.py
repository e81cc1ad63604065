"""The commands that README and the pages show, and the folder in which they can be typed."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from deltalens.cli.main import app
from deltalens.demo import build_demo
from tests.architecture.import_graph import ROOT
from tests.architecture.test_readme import typed_commands
from tests.support.demo import TINY

__all__ = [
    "PAGES",
    "QUICK",
    "Shown",
    "build_page_demo",
    "docs_module",
    "failures_of",
    "runs_here",
    "shown_on",
]

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "quickstart").glob("*.md")),
]
_TRAINING = ["--steps", "1"]
_TRAININGS = [*_TRAINING, "--seeds", "1"]
QUICK = {
    "train": _TRAINING,
    "compare": _TRAININGS,
    "sweep mask-ratio": [*_TRAININGS, "--mask-ratios", "0.5"],
    "sweep data-ratio": [*_TRAININGS, "--data-ratios", "1"],
    "sweep layers": _TRAININGS,
    "sweep density": [*_TRAININGS, "--ranks", "1"],
    "sweep masks": _TRAININGS,
    "sweep layers-drop": [],
    "efficiency": ["--block-steps", "1", "--repeats", "1"],
    "drop-study": ["--rates", "0.5", "--seeds", "1"],
    "landscape": ["--grid", "3x3"],
}
"""What makes an example take seconds."""
_SCRIPT = re.compile(r"\w+\.py")


@dataclass(frozen=True)
class Shown:
    """A command of a page."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def name(self) -> str:
        """Of the deltalens command: `train`, or `sweep layers`."""
        return " ".join(self.words[1:3] if self.words[1] == "sweep" else self.words[1:2])

    @property
    def out(self) -> str | None:
        """The folder or file that it writes, if it is named."""
        return self.words[self.words.index("-o") + 1] if "-o" in self.words else None


def shown_on(page: Path) -> list[Shown]:
    """The commands of a page's shell blocks, in their order."""
    return [Shown(tuple(words)) for words in typed_commands(page.read_text(encoding="utf-8"))]


def runs_here(shown: Shown) -> bool:
    """Whether `failures_of` can run it: a deltalens command, or a script of the page."""
    program, *rest = shown.words
    return program == "deltalens" or (
        program == "python" and len(rest) == 1 and _SCRIPT.fullmatch(rest[0]) is not None
    )


@cache
def docs_module(name: str) -> Any:
    """A script of docs/, which is no package's."""
    found = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def build_page_demo(folder: Path) -> Path:
    """As `deltalens demo` leaves it, of few rows, with the models and runs that pages name.

    Args:
        folder: to write.

    Returns:
        The folder of base/, ft/ and rows.
    """
    paths = build_demo(folder, recipe=replace(TINY, blocks=3))
    for file in (paths.train, paths.test):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:24]))
    typed = ["train", "sft", "base/", "--train-data", "train.jsonl", "--steps", "2", "--probe"]
    with contextlib.chdir(paths.folder):
        done = CliRunner().invoke(app, [*typed, "--keep-checkpoints", "-o", "runs/a", "-q"])
        assert done.exit_code == 0, done.output
        # Three models that differ: a landscape has nothing between equal ones.
        for copied, name in (("runs/a", "runs/b"), ("runs/a", "mft"), ("base", "continued")):
            shutil.copytree(copied, name)
    return paths.folder


def failures_of(page: Path, left_out: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a page's commands one after the other.

    Args:
        page: of README or docs/.
        left_out: commands that are not run.
        folder: as `build_page_demo` leaves it.

    Yields:
        Each command that failed, with what it printed.
    """
    files = docs_module("build_outputs").page_files(page.read_text(encoding="utf-8"))
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    with contextlib.chdir(folder):
        for shown in shown_on(page):
            if str(shown) in left_out:
                continue
            if shown.out is not None and Path(shown.out).is_dir():
                # Of another example: pages call most studies `study/`.
                shutil.rmtree(shown.out)
            if fault := _fault(shown):
                yield f"{shown}\n{fault}"


def _fault(shown: Shown) -> str:
    """What a command that failed printed; empty if it did not fail."""
    program, *rest = shown.words
    if program == "python":
        done = subprocess.run([sys.executable, *rest], capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""
    words = [found for word in rest for found in (sorted(glob.glob(word)) or [word])]
    typed = CliRunner().invoke(app, [*words, *QUICK.get(shown.name, [])])
    if typed.exit_code:
        return f"{typed.output}{typed.exception or ''}"
    if shown.out is not None and "--dry-run" not in rest and not Path(shown.out).exists():
        return f"no {shown.out}"
    return ""
