"""Two processes, DDP and FSDP2: each holds the masks selected on the full scores."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.slow
def test_shards_are_masked_as_the_whole() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.support.distributed.sharded_scores"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    # The traceback names the check, with what it was called.
    assert done.returncode == 0, done.stderr[-6000:]
