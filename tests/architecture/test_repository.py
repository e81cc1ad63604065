"""What is committed belongs to everybody's machine."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.architecture.import_graph import ROOT

MACHINE_PATH = re.compile(r"(?<![\w.:/~-])/(?:work|root|opt|(?:home|Users)/\w[\w.-]*)/|file:/{2}")
LARGEST = 1_000_000  # bytes


def project_files() -> list[Path]:
    """What git tracks, and what it would track after `git add .`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def machine_paths(text: str) -> list[str]:
    """The lines of a text that name one machine's folders."""
    return [
        f"{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]


def test_no_text_names_a_path_of_one_machine():
    found = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" not in content:
            text = content.decode("utf-8", errors="replace")
            found += [f"{path.relative_to(ROOT)}:{line}" for line in machine_paths(text)]
    assert found == []


def test_no_file_is_larger_than_a_megabyte():
    large = [path for path in project_files() if path.stat().st_size > LARGEST]
    assert large == []


def test_ci_can_be_started():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("folder", ["work", "root", "opt", "home/ann", "Users/ann"])
def test_planted_path_is_found(folder):
    assert len(machine_paths(f"first line\nopen('/{folder}/data.csv')\n")) == 1


def test_planted_file_address_is_found():
    assert len(machine_paths("see file:" + "//server/index")) == 1


@pytest.mark.parametrize(
    "text", ["https://example.org/work/x", "a/root/b", "#!/usr/bin/env bash", "../opt/x", "~/work/"]
)
def test_other_paths_are_left_alone(text):
    assert machine_paths(text) == []
