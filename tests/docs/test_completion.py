"""Shells complete commands and options, as docs/cli.md says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMED = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
"""The shell is the one that is named, whatever this process was started from."""


def completed(line: str) -> list[str]:
    """What the Tab key offers bash at the end of a line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_DELTALENS_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    program = Path(sys.executable).with_name("deltalens")
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("deltalens dr", ["drop-study", "drop"]),
        ("deltalens drop-study --ra", ["--rates"]),
        ("deltalens train gm", ["gmt"]),
        ("deltalens train gmt --ma", ["--mask-ratio"]),
    ],
)
def test_a_shell_completes(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_it_installs_where_the_shell_looks(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("deltalens")
    subprocess.run(
        [program, "--install-completion", "bash"],
        env={**os.environ, "HOME": str(tmp_path), **NAMED},
        capture_output=True,
        check=True,
    )
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert str(script) in (tmp_path / ".bashrc").read_text(encoding="utf-8")
