"""Two processes under DDP train the same entries alike."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed


def test_two_processes_train_the_entries_of_the_first_one_as_one_process_does() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.support.distributed.sparse_values"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    # The traceback names the check.
    assert done.returncode == 0, done.stderr[-6000:]
