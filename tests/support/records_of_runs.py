"""A probe's run and a training, as records alone: nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltalens.io.checksum import sealed
from deltalens.io.records.run import RunWriter
from deltalens.io.version import FORMAT, IDENTITY

__all__ = ["make_run", "make_training"]


def make_run(folder: Path, name: str = "model.layers.0.mlp.up_proj.weight", **values: Any) -> Path:
    """A run of two logged steps of two tensors.

    Args:
        folder: a new one.
        name: of the first tensor.
        values: of the table of tensors, instead of harmless ones; `close` False leaves it open.
    """
    close = values.pop("close", True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    run = RunWriter(folder, {"kind": "gradients", "every": 10, "mask_ratios": [0.5]})
    names = ([0, 1, 0, 1], [name, "model.embed_tokens.weight"])
    steps = [0, 0, 10, 10]
    columns = {"entries": 10, "norm": 1.0, "zeros": 0, "nans": 0, "infinities": 0, "subnormals": 0}
    columns |= dict.fromkeys(("mean", "q50", "q90", "q99", "q999"), 0.1) | values
    rows = {column: [value] * 4 for column, value in columns.items()}
    run.add("tensors", {"step": steps, "tensor": names, **rows})
    bins = {"low": [0.1] * 4, "high": [0.2] * 4, "count": [10] * 4}
    run.add("histograms", {"step": steps, "tensor": names, **bins})
    masks = {"mask_ratio": 0.5, "threshold": 0.1, "kept": 5, "entries": 10, "coverage": 0.6}
    masks |= {"jaccard_previous": 0.4, "chance_previous": 0.33, "containment_previous": 0.5}
    run.add("masks", {"step": steps, "tensor": names, **{k: [v] * 4 for k, v in masks.items()}})
    run.flush()
    if close:
        run.close()
    return folder


def make_training(folder: Path, method: str = "sft", finished: bool = True, **facts: Any) -> Path:
    """A training of twelve steps with two evaluations."""
    folder.mkdir(parents=True)
    model = {"weights": "d028c46bc056be02"}
    spec = {
        **{"method": method, "seed": 0, "steps": 12, "batch_size": 8, "learning_rate": 2e-5},
        **{"model": model, "data": ["train", 64, "eba43758"], "eval_data": [["test", 9, "ce70"]]},
        **{"device": "cpu", "dtype": "float32", "probe": None},
    }
    known = {"model": "base", "seconds": 1.5, "units": {"loss": "nats per target token"}}
    record = {"asked": spec, "facts": {**known, "versions": {"torch": "2.6"}, "notes": [], **facts}}
    manifest = sealed({"format": FORMAT, "deltalens": "0.1.0", "identity": IDENTITY, **record})
    (folder / "train.json").write_text(json.dumps(manifest))
    lines: list[dict[str, Any]] = [{"step": step, "loss": 2.0 / step} for step in range(1, 13)]
    for step, loss in ((6, 0.9), (12, 0.5)):
        lines.append({"step": step, "evaluated": {"test/loss": [loss, 0.02, 9]}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "config.json").write_text("{}")
    return folder
