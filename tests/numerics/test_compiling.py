"""Compiled loops work where nothing can be kept, and say so once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RUN = """
import warnings
from pathlib import Path
import torch
{before}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from deltalens.numerics.selection import Entries, OnCpu
    from deltalens.numerics.scratch import Scratch
    from deltalens.numerics.workers import serial_map
    gradient = torch.tensor([0.0, 1.0, -2.0, 3.0])
    ((counts,),) = OnCpu(serial_map, Scratch()).count([[Entries('w', gradient)]])
    print(counts.zeros)
    print(len([one for one in said if issubclass(one.category, RuntimeWarning)]))
    print(next((str(one.message) for one in said), ""))
"""


def run(folder: Path, before: str = "") -> list[str]:
    """What a fresh process prints that keeps its compiled loops in a folder."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(before=before)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A folder of compiled loops."""
    folder = tmp_path_factory.mktemp("kept")
    assert run(folder) == ["1", "0", ""]
    assert list(folder.rglob("*.nbi"))
    return folder


def test_without_a_place_to_keep_them_they_are_compiled_in_memory(tmp_path):
    nowhere = "from numba.core import caching; caching.CacheImpl._locator_classes.clear()"
    zeros, warned, text = run(tmp_path, nowhere)
    assert (zeros, warned) == ("1", "1")
    assert "NUMBA_CACHE_DIR" in text


@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
@pytest.mark.parametrize("damage", [b"", b"\x80\x04torn", b"not a pickle at all"])
def test_a_torn_file_is_made_anew(kept, kind, damage):
    for file in kept.rglob(kind):
        file.write_bytes(damage)
    zeros, warned, _ = run(kept)
    assert (zeros, warned) == ("1", "1")
    assert run(kept) == ["1", "0", ""], "it was not repaired"


def test_a_full_disk_costs_only_time(tmp_path):
    full = (
        "from numba.core import caching\n"
        "def full(self, *given): raise OSError(28, 'No space left on device')\n"
        "caching.IndexDataCacheFile._save_data = full"
    )
    zeros, warned, text = run(tmp_path, full)
    assert (zeros, warned) == ("1", "1")
    assert "No space left" in text


FAILS = """
import sys, numba.core.dispatcher as dispatcher, torch
from deltalens.errors import DeltaLensError
from deltalens.numerics import straight_through
from deltalens.numerics.selection import compile_keep_loops, compile_loops

def fail(*given, **more):
    raise RuntimeError("no compiler")

dispatcher._FunctionCompiler.compile = fail
for make in (compile_keep_loops, compile_loops, straight_through.compile_loops):
    try:
        make(torch.float32)
    except DeltaLensError as error:
        print(error)
"""


def test_loops_that_cannot_be_compiled_are_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILS],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    line = "the loops for torch.float32 cannot be compiled: numba says: RuntimeError: no compiler\n"
    assert done.stdout == 3 * line
