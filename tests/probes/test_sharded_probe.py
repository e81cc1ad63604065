"""Two processes: a probe records of shards what one process records of the whole, and changes
nothing of a trainer's DDP."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from deltalens import load_run

pytestmark = pytest.mark.distributed

STEPS = 6
"""As in `trainer_probe`."""


def run(module: str, *arguments: object) -> None:
    """Run a module of `tests/support/distributed/` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    module = f"tests.support.distributed.{module}"
    done = subprocess.run(
        [*command, "-m", module, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_shards_are_measured_as_the_whole(tmp_path: Path, kind: str) -> None:
    run("sharded_probe", kind, tmp_path)
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


@pytest.mark.slow
def test_the_trainer_under_ddp_is_unchanged_and_one_process_writes(tmp_path: Path) -> None:
    run("trainer_probe", tmp_path)
    assert [found.name for found in tmp_path.glob("run-*")] == ["run-0"]
    tensors = load_run(tmp_path / "run-0").tensors
    assert sorted(set(tensors.step)) == list(range(STEPS))
    # What is logged is the gradient after clipping.
    norms = tensors.groupby("step").norm.apply(lambda norm: float((norm**2).sum() ** 0.5))
    assert norms.tolist() == pytest.approx([0.05] * STEPS, rel=1e-3)


def sorted_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """In an order of their own: the tensors come in any."""
    keys = [name for name in ("step", "tensor", "mask_ratio", "low") if name in frame]
    frame = frame.assign(tensor=frame.tensor.astype(str))
    return frame.sort_values(keys).reset_index(drop=True)
