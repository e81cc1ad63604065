"""Standard output and error that are full, closed, gone, or of another encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoint_files import save, tuned, weights

PROGRAM = f"{sys.executable} -m deltalens.cli.main"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a good pair."""
    save(tmp_path / "base", weights())
    save(tmp_path / "ft", tuned(weights()))
    return tmp_path


def shell(
    place: Path, line: str, encoding: str = "utf-8", **more: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line.replace("deltalens", PROGRAM)],
        cwd=place,
        capture_output=True,
        encoding=encoding,
        env={**os.environ, **more},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("deltalens --version > /dev/full", "No space left on device"),
        ("deltalens --help > /dev/full", "No space left on device"),
        ("deltalens inspect ft base > /dev/full", "No space left on device"),
        ("deltalens inspect ft base --json > /dev/full", "No space left on device"),
        ("deltalens inspect ft base >&-", "Bad file descriptor"),
        ("deltalens drop ft base --rate 0.5 -o out >&-", "Bad file descriptor"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(place: Path, line: str, why: str) -> None:
    done = shell(place, line)
    assert done.stderr == (
        f"deltalens: standard output cannot be written: {why}; what the command made is kept\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    if " -o " in line:
        assert (place / "out" / "model.safetensors").is_file()


def test_a_pipe_that_nobody_reads_ends_the_command_without_a_word(place: Path) -> None:
    done = shell(place, "deltalens inspect ft base | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("closed", ["2>&-", "2> /dev/full", "<&-"])
def test_without_standard_error_the_work_goes_on(place: Path, closed: str) -> None:
    plain, without = (
        shell(place, f"deltalens inspect ft base {how}") for how in ("2> /dev/null", closed)
    )
    assert without.returncode == 0
    assert without.stdout == plain.stdout != ""


def test_characters_that_an_encoding_lacks_are_escaped(place: Path) -> None:
    save(place / "ft", {**tuned(weights()), "œ.weight": weights()["model.norm.weight"]})
    # click takes ASCII for a mistake, and writes UTF-8.
    for encoding, written, said in (
        ("latin-1", "latin-1", r"\u0153.weight"),
        ("ascii", "utf-8", ".weight"),
    ):
        done = shell(place, "deltalens inspect ft base", written, PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
