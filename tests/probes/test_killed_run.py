"""A training killed at any moment leaves a run that reads, and lacks no more than was waiting."""

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from deltalens import GradientProbe, load_run
from deltalens.io.records import run as runs

pytestmark = pytest.mark.resume

INTERVAL = 0.15


def train(folder: Path, seconds: float) -> None:
    """Log each step of a training, and note in a file of its own when it was over."""
    runs.PART_SECONDS = INTERVAL
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    begun = time.monotonic()
    with (folder / "progress").open("w") as progress, GradientProbe(model, folder / "run"):
        step = 0
        while time.monotonic() - begun < seconds:
            model(torch.randn(8, 30)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            progress.write(f"{step} {time.monotonic()}\n")
            progress.flush()
            step += 1
    (folder / "closed").touch()


@pytest.fixture(scope="module")
def context() -> multiprocessing.context.ForkServerContext:
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["torch", "pandas", "pyarrow.parquet", "deltalens.probes.gradient"])
    return made


def kill_at(context: multiprocessing.context.ForkServerContext, folder: Path, after: float) -> int:
    """Kill a training so long after its first step; how many steps its run holds."""
    folder.mkdir()
    process = context.Process(target=train, args=(folder, 1.0))
    process.start()
    progress = folder / "progress"
    while process.is_alive() and not (progress.exists() and progress.stat().st_size):
        time.sleep(0.002)
    process.join(after)
    killed = time.monotonic()
    process.kill()
    process.join()
    record = load_run(folder / "run")
    lines = progress.read_text().split("\n")[:-1]
    noted = {int(step): float(at) for step, at in (line.split() for line in lines)}
    found = sorted(set(record.tensors.step))
    assert found == list(range(len(found)))
    assert sorted(set(record.masks.step)) == found
    if (folder / "closed").exists():
        assert len(found) >= len(noted)
    # What was over before the last interval is there; a part takes a moment to write.
    lost = [at for step, at in noted.items() if step >= len(found)]
    assert not lost or min(lost) > killed - 2 * INTERVAL - 0.3
    return len(found)


def kills(
    context: multiprocessing.context.ForkServerContext, folder: Path, count: int
) -> list[int]:
    moments = random.Random(count)
    return [
        kill_at(context, folder / str(place), (place + moments.random()) / count * 1.3)
        for place in range(count)
    ]


def test_3_kills(context: multiprocessing.context.ForkServerContext, tmp_path: Path) -> None:
    print(f"steps on the disk: {kills(context, tmp_path, 3)}")


@pytest.mark.slow
def test_20_kills(context: multiprocessing.context.ForkServerContext, tmp_path: Path) -> None:
    found = kills(context, tmp_path, 20)
    print(f"steps on the disk: {found}")
    assert sum(steps > 0 for steps in found) >= 10


def test_killed_between_the_two_renames_of_a_close(tmp_path: Path) -> None:
    train_here(tmp_path)
    whole = load_run(tmp_path / "run").masks
    (tmp_path / "run" / "masks").rename(tmp_path / "run" / ".masks.old")
    assert load_run(tmp_path / "run").masks.equals(whole)


def train_here(folder: Path) -> None:
    model = nn.Linear(6, 5)
    optimizer = torch.optim.AdamW(model.parameters())
    with GradientProbe(model, folder / "run"):
        for _ in range(3):
            model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
