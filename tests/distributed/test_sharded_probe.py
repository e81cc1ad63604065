"""Two processes: what a probe records of shards is what one process records of the whole."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from deltalens import load_run

SCRIPT = Path(__file__).with_name("sharded_probe.py")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_shards_are_measured_as_the_whole(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(SCRIPT), kind, str(tmp_path)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for scope in ("tensor", "layer", "global"):
        sharded, whole = load_run(tmp_path / scope), load_run(tmp_path / f"{scope}-whole")
        for table in ("histograms", "masks"):
            one, other = (sorted_rows(getattr(run, table)) for run in (sharded, whole))
            pd.testing.assert_frame_equal(one, other)
        updates = ["bits_changed", "bf16_changed", "stalled"]
        one, other = (sorted_rows(run.tensors.drop(columns=updates)) for run in (sharded, whole))
        pd.testing.assert_frame_equal(one, other)
        assert sharded.tensors.bits_changed.between(0, 1).all()
        assert sharded.tensors.bits_changed.max() > 0.5
        assert len(set(sharded.tensors.step)) == 4


def sorted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """In an order of their own: the tensors come in any."""
    keys = [name for name in ("step", "tensor", "mask_ratio", "low") if name in frame]
    frame = frame.assign(tensor=frame.tensor.astype(str))
    return frame.sort_values(keys).reset_index(drop=True)
