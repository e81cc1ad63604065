"""What everybody loads is light: seen in a fresh process, as a user starts it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "matplotlib", "pandas"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python away from the checkout, so that only what is installed is found."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def imported(folder: Path, *arguments: str) -> set[str]:
    """The top-level packages that a Python process imports."""
    log = run(folder, "-X", "importtime", *arguments).stderr
    packages = set(re.findall(r"^import time:.*\| *(\w+)", log, flags=re.MULTILINE))
    assert "encodings" in packages or "site" in packages, "the log of imports could not be read"
    return packages


def test_importing_deltalens_loads_nothing_heavy(tmp_path):
    assert imported(tmp_path, "-c", "import deltalens") & HEAVY == set()


def test_log_of_imports_shows_a_heavy_one(tmp_path):
    assert "pandas" in imported(tmp_path, "-c", "import pandas")


def test_commands_and_figures_are_installed_inside_deltalens(tmp_path):
    run(tmp_path, "-c", "import deltalens.cli, deltalens.figures")


@pytest.mark.parametrize(
    "start",
    [
        ("-m", "deltalens.cli.main"),
        (str(Path(sys.executable).parent / "deltalens"),),
    ],
    ids=["module", "script"],
)
def test_help_loads_no_torch(tmp_path, start):
    assert imported(tmp_path, *start, "--help") & {"torch", "transformers"} == set()


def test_load_study_needs_no_torch(tmp_path):
    program = """
import sys
sys.modules["torch"] = None  # from here on, importing it fails
import deltalens
from deltalens.errors import DeltaLensError
try:
    deltalens.load_study("nothing-here")
except DeltaLensError as error:
    print(error)
"""
    assert "nothing-here" in run(tmp_path, "-c", program).stdout
