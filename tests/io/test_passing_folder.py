"""A folder for the duration of some work goes with it, and at the latest with the next one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deltalens.errors import DeltaLensError
from deltalens.io.folders import temporary_folder

KILLED = """
import os, signal
from deltalens.io.folders import temporary_folder
with temporary_folder("work") as folder:
    (folder / "large").write_text("weights")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_it_is_for_nobody_else_and_goes_with_its_content(place: Path) -> None:
    with temporary_folder("work") as folder:
        assert folder.parent == place
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_one(place: Path) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert run.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    with temporary_folder("work") as own, temporary_folder("work") as other:
        assert {*place.iterdir()} == {own, other}, f"{left} goes, and no living one"


def test_no_place_for_it_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place / "none"))
    with pytest.raises(DeltaLensError, match="none: cannot be written"), temporary_folder("work"):
        pass
