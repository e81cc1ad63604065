"""Studies of trainings in which nothing is trained: what a training is given decides its number.

So two trainings have the same number only if they were given the same; no model is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from deltalens.io.checkpoint import open_checkpoint
from deltalens.io.records import Measurement
from deltalens.io.records.metrics import Metrics
from deltalens.scoring.loading import pick_device
from deltalens.scoring.rows import read_rows
from deltalens.studies import cell_maker
from deltalens.training.run import Trained, training_dtype
from deltalens.training.spec import TrainingSpec

OPTIONS: dict[str, list[Any]] = {
    "mask_ratio": ["0.1", "0.2", "0.5"],
    "scope": ["tensor", "layer"],
    "apply_to": ["gradient", "update"],
    "include": ["mlp"],
    "exclude": ["mlp"],
    "blocks": ["all", "1"],
    "modules": ["mlp"],
    "threshold": [-0.03],
    "complement": [True],
    "rank_by": ["magnitude", "value"],
    "init_std": [0.02, 0.03],
    "score_learning_rate": [2e-5, 1e-3],
    "lora_rank": [64, 2],
    "lora_alpha": [16, 2, "rank"],
    "lora_dropout": [0.1, 0.2],
    "targets": ["linear", "attention"],
    "epochs": [1.0, 2.0],
    "steps": [2],
    "learning_rate": [2e-5, 1e-3],
    "weight_decay": [0.1],
    "warmup": [0.1],
    "loss_on": ["all"],
    "batch_size": [4],
    "accumulate": [2],
    "accumulate_mean": ["batch"],
    "max_length": [16],
    "gradient_checkpointing": [True],
    "recipe": [{"max_grad_norm": 0.5}],
    "labels": [("no", "yes")],
}
"""Settings of trainings, and values of them."""


def given(spec: TrainingSpec) -> dict[str, Any]:
    """All that a method can see of its settings: what was not given has its value."""
    shared = {one.name: getattr(spec, one.name) for one in dataclasses.fields(spec)}
    method: Any = spec.method
    own: dict[str, Any] = dataclasses.asdict(method)
    if "mask_ratio" in own:
        removed = method.ratios if hasattr(method, "ratios") else {"": method.ratio}
        by_ratio = own.get("threshold") is None
        own["mask_ratio"] = (
            {kind: str(rate) for kind, rate in removed.items()} if by_ratio else None
        )
    # The ratio above is that of the weights removed, complement or not.
    own.pop("complement", None)
    rate = spec.peak_learning_rate
    return {
        **shared,
        "method": method.name,
        **own,
        "learning_rate": rate,
        "score_learning_rate": rate if "score_learning_rate" in own else None,
    }


class FakeTraining:
    """In place of `train`, and of what measures a checkpoint as it is; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def train(self, model: Path, data: Path, out: Path, spec: TrainingSpec, **how: Any) -> Trained:
        """The number is that of everything that was given."""
        self.calls += 1
        rows = read_rows(data, how["limit"], how["fields"]).rows
        seen = {n: how[n] for n in ("eval_data", "eval_every", "choose_on")}
        seen["computed"] = computed(model, how["device"], how["dtype"])
        found = number([open_checkpoint(model).fingerprint, rows, given(spec), seen])
        out.mkdir(parents=True)
        (out / "metrics.jsonl").write_text("")
        if how["choose_on"] is not None:
            held = number([found, "on the rows that choose"])
            Metrics(out).add({"step": 1, "choosing": {"loss": [held, 0.0, 1]}})
        return Trained(out, 1, 0.0, 0.5, True, {"loss": Measurement(found)})

    def measure(self, worker: Any, folder: str | Path, **how: Any) -> Mapping[str, Measurement]:
        """The same of a checkpoint."""
        self.calls += 1
        source = worker.source
        seen: list[Any] = [
            open_checkpoint(folder).fingerprint,
            computed(folder, source.device, source.dtype),
        ]
        if how.get("files"):
            seen.append([file.path for file in how["files"]])
        return {"loss": Measurement(number(seen))}


def computed(model: str | Path, device: str, dtype: str) -> list[str]:
    """Where and in which numbers."""
    where = pick_device(device)
    return [where.type, str(training_dtype(dtype, open_checkpoint(model), where))]


def number(things: object) -> float:
    """Another one for other things."""
    return int(hashlib.sha256(repr(things).encode()).hexdigest()[:12], 16) / 1e12


def _measured(
    worker: Any, fake: FakeTraining, folder: str | Path, report: Any = None, **how: Any
) -> Any:
    return fake.measure(worker, folder, **how)


def fake_trainings(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    """From here to the end of the test nothing is trained."""
    fake = FakeTraining()
    monkeypatch.setattr(cell_maker, "train", fake.train)
    monkeypatch.setattr(cell_maker.CellMaker, "evaluate", partialmethod(_measured, fake))
    return fake
