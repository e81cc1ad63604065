"""Models that accelerate spreads over devices, the CPU and the disk: the same numbers, bit for bit,
and the same bits at the end."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.io.matching import pair as pair_up
from deltalens.scoring.loading import Loading
from deltalens.studies.live import LiveModel
from deltalens.studies.offloaded import live_tensors
from tests.support.checkpoint_pairs import Kind, Pair, PairOf, differing, plain, state_of
from tests.support.runs import command, write_rows

KINDS = [
    Kind("llama", torch.float32),
    Kind("llama", torch.bfloat16, sharded=True, tied=True),
    Kind("gpt2", torch.bfloat16, tied=True),
    Kind("mixtral", torch.float32),
]
DISK = {"": "disk"}
PART = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"} | {
    name: "cpu" for name in ("model.norm", "model.rotary_emb", "lm_head")
}
ROWS = [{"prompt": f"{a}+{b}>", "completion": f"={a + b}"} for a, b in ((1, 2), (3, 4), (5, 1))]

Study = Callable[..., Any]
STUDIES: dict[str, Study] = {
    "drop-study": lambda ft, base, data, out, **how: deltalens.drop_study(
        ft, base, out, data=data, metrics="loss,exact_match,kl", rates="0.4", seeds=1, **how
    ),
    "layers": lambda ft, base, data, out, **how: deltalens.sweep_layers_drop(
        ft, base, out, data=data, **how
    ),
    "line": lambda ft, base, data, out, **how: deltalens.scan_landscape(
        ft, out, [base], grid=3, data=data, **how
    ),
    "random": lambda ft, base, data, out, **how: deltalens.scan_landscape(
        ft, out, plane="random", grid=2, low_memory=True, data=data, **how
    ),
    "evaluate": lambda ft, base, data, out, **how: deltalens.evaluate(
        [ft, base], out, data=data, **how
    ),
    "generating": lambda ft, base, data, out, **how: deltalens.evaluate(
        [ft, base], out, data=data, answer_pattern="[0-9]+", **how
    ),
}


@pytest.fixture(params=KINDS, ids=str)
def pair(request: pytest.FixtureRequest, pair_of: PairOf) -> Pair:
    found: Pair = pair_of(request.param)
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Any:
    """No folder of offloaded weights outlives its model."""
    yield
    gc.collect()
    assert not [*Path(tempfile.gettempdir()).glob(f".deltalens-offload*-{os.getpid()}-*")]


@pytest.mark.parametrize("device_map", [PART, DISK, "auto"], ids=["part", "disk", "auto"])
@pytest.mark.parametrize("name", STUDIES)
def test_the_table_is_that_of_one_device(
    pair_of: PairOf, tmp_path: Path, name: str, device_map: Any
) -> None:
    pair, rows = pair_of(family="llama"), write_rows(tmp_path / "rows.jsonl", ROWS)
    tables = []
    for folder, how in (("plain", {}), ("spread", {"device_map": device_map})):
        study = STUDIES[name](pair.ft, pair.base, rows, tmp_path / folder, **how)
        tables.append((study.path / "cells.csv").read_bytes())
    assert tables[0] == tables[1]
    # And it is the same study: the same folder takes both.
    STUDIES[name](pair.ft, pair.base, rows, tmp_path / "plain", device_map=device_map)


def spread(folder: Path, device_map: Any = DISK) -> nn.Module:
    checkpoint = deltalens.open_checkpoint(folder)
    kind = plain(folder).dtype
    return Loading(kind, torch.device("cpu"), False, device_map).load(checkpoint).model


def held(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what the next forward pass computes with."""
    return {name: each.detach().clone() for name, each in live_tensors(model).items()}


def test_weights_on_the_disk_are_edited_and_restored(pair: Pair) -> None:
    model = spread(pair.ft)
    files = {file: file.read_bytes() for file in pair.ft.iterdir()}
    tokens = torch.arange(8).reshape(1, 8)
    live = LiveModel(model, pair_up(pair.ft, pair.base))
    assert all(each.device.type == "meta" for each in model.parameters())
    with torch.no_grad():
        live.put_back_all()
        assert differing(held(model), state_of(plain(pair.base))) == []
        assert torch.equal(model(tokens).logits, plain(pair.base)(tokens).logits)
        live.restore()
        assert differing(held(model), state_of(plain(pair.ft))) == []
        assert torch.equal(model(tokens).logits, plain(pair.ft)(tokens).logits)
    assert files == {file: file.read_bytes() for file in pair.ft.iterdir()}
    # Another study of the same model edits the same copies.
    LiveModel(model, pair_up(pair.ft, pair.base))


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_a_model_that_the_caller_offloaded_is_moved_and_restored(
    pair_of: PairOf, tmp_path: Path, how: str
) -> None:
    pair = pair_of(family="llama", tied=True)
    model, other = plain(pair.ft), plain(pair.base)
    before, tokens = state_of(model), torch.arange(8).reshape(1, 8)
    if how == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path / "offload", torch.device("cpu"))
    files = {file: file.read_bytes() for file in tmp_path.glob("offload/*")}

    def metric(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"sum": float(model(tokens).logits.double().abs().sum())}

    tables = []
    for folder, origin in (("plain", plain(pair.ft)), ("offloaded", model)):
        out = tmp_path / folder
        deltalens.scan_landscape(origin, out, [other], grid=3, metric=metric, version="1")
        tables.append((out / "cells.csv").read_bytes())
    assert tables[0] == tables[1]
    assert differing(held(model), before) == []
    assert files == {file: file.read_bytes() for file in tmp_path.glob("offload/*")}


def test_salience_says_why_it_takes_no_offloaded_weights(pair_of: PairOf, tmp_path: Path) -> None:
    pair, rows = pair_of(family="llama"), write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DeltaLensError, match=r"no gradients of offloaded weights.*\n.*layers\.1"):
        deltalens.salience_study(pair.base, rows, tmp_path / "out", steps=1, device_map=PART)
    assert not (tmp_path / "out").exists()
    tables = []
    for folder, device_map in (("plain", None), ("spread", {"": "cpu"})):
        study = deltalens.salience_study(
            pair.base, rows, tmp_path / folder, steps=1, metrics="snip", device_map=device_map
        )
        tables.append((study.path / "cells.csv").read_bytes())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device_map": "evenly"}, "'evenly': choose one of auto, balanced"),
        ({"device_map": ["model.layers.0=disk", "cpu"]}, "'cpu': one name, or MODULE=DEVICE"),
        ({"device_map": "auto", "device": "cpu"}, "device 'cpu' and device_map: give one"),
        ({"device_map": "auto", "jobs": 2}, "jobs 2 and device_map"),
        ({"device_map": {"": "cuda:63"}}, "transformers cannot load it"),
    ],
)
def test_what_no_device_map_can_be_is_refused(
    pair_of: PairOf, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    pair, rows = pair_of(family="llama"), write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DeltaLensError, match=message):
        deltalens.evaluate([pair.ft], tmp_path / "out", data=rows, **given)
    assert not (tmp_path / "out").exists()


def test_the_hessian_takes_a_model_on_one_device(pair_of: PairOf, tmp_path: Path) -> None:
    pair, rows = pair_of(family="llama"), write_rows(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DeltaLensError, match="plane hessian and device_map"):
        deltalens.scan_landscape(
            pair.ft, tmp_path / "out", plane="hessian", data=rows, device_map="auto"
        )


def test_a_device_map_is_typed_module_by_module(pair_of: PairOf, tmp_path: Path) -> None:
    pair, rows = pair_of(family="llama"), write_rows(tmp_path / "rows.jsonl", ROWS)
    typed = [f"--device-map={module}={device}" for module, device in PART.items()]
    done = command("evaluate", pair.ft, "--data", rows, *typed, "-o", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["metrics"]["loss"]["best"] == str(pair.ft)
    assert done.stderr == ""
