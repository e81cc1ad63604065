"""TensorBoard and Weights & Biases get the same counts that the run folder holds."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deltalens import DeltaLensError, GradientProbe, load_run
from deltalens.probes.sinks import contiguous_histogram


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_tensorboard_holds_the_counts(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = nn.Linear(6, 5)
    writer = SummaryWriter(str(tmp_path / "tb"))
    with GradientProbe(model, tmp_path / "run", sinks=[writer]):
        train(model)
    writer.close()
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"histograms": 0})
    events.Reload()
    bins = load_run(tmp_path / "run").histograms
    for event in events.Histograms("gradients/weight"):
        mine = bins[(bins.step == event.step) & (bins.tensor == "weight")]
        assert event.histogram_value.num == mine["count"].sum() == 30
        found = [count for count in event.histogram_value.bucket if count]
        assert found == mine["count"].tolist()
    norms = load_run(tmp_path / "run").tensors.set_index(["tensor", "step"]).norm
    for scalar in events.Scalars("gradient_norm/bias"):
        assert scalar.value == pytest.approx(norms["bias", scalar.step])


def test_weights_and_biases_takes_the_histograms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="tests")
    logged: list[dict[str, Any]] = []
    log = run.log
    monkeypatch.setattr(run, "log", lambda values: logged.append(values) or log(values))
    model = nn.Linear(6, 5)
    with GradientProbe(model, tmp_path / "run", sinks=[run]):
        train(model)
    run.finish()
    bins = load_run(tmp_path / "run").histograms
    assert [values["deltalens/step"] for values in logged] == [0, 1, 2]
    for values in logged:
        mine = bins[(bins.step == values["deltalens/step"]) & (bins.tensor == "weight")]
        histogram = values["gradients/weight"]
        assert sum(histogram.histogram) == mine["count"].sum()
        assert len(histogram.histogram) <= 512


def test_occupied_bins_become_one_histogram_without_gaps() -> None:
    low = np.array([0.25, 0.375, 1.75, 8.0])
    high = np.array([0.3125, 0.4375, 2.0, 10.0])
    counts, edges = contiguous_histogram(low, high, np.array([3, 1, 4, 2]))
    assert len(edges) == len(counts) + 1
    assert np.all(np.diff(edges) > 0)
    for start, stop, count in zip(low, high, [3, 1, 4, 2], strict=True):
        place = int(np.argmin(abs(edges - math.log2(start))))
        assert edges[place : place + 2] == pytest.approx([math.log2(start), math.log2(stop)])
        assert counts[place] == count
    assert counts.sum() == 10


def test_a_range_of_more_than_512_bins_is_merged_by_octave() -> None:
    low = np.array([2.0**-126, 1.5 * 2.0**-126, 2.0**100])
    high = np.array([1.25 * 2.0**-126, 1.75 * 2.0**-126, 1.25 * 2.0**100])
    counts, edges = contiguous_histogram(low, high, np.array([1, 2, 3]))
    assert len(counts) <= 512
    assert counts[0] == 3
    assert counts[counts.nonzero()[0][-1]] == 3
    assert edges[0] == -126


def test_anything_else_is_no_sink(tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="SummaryWriter"):
        GradientProbe(nn.Linear(2, 2), tmp_path / "r", sinks=[print])
