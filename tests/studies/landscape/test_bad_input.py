"""What cannot be scanned is refused with one message that says why, before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deltalens
from deltalens.errors import DeltaLensError, PairingError
from deltalens.scoring import loading as module
from deltalens.studies.landscape.grid import parse_grid, parse_range
from tests.studies.landscape.conftest import Three, write_three
from tests.support.checkpoint_pairs import Kind
from tests.support.models import llama, save
from tests.support.quadratics import quadratics, scan
from tests.support.runs import command

pytestmark = pytest.mark.bad_input


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "load_model", refuse)


Change = Callable[[Three], dict[str, Any]]

BAD: dict[str, tuple[Change, str]] = {
    "no data": (lambda t: {"data": ()}, "a landscape needs `data` to measure the loss on"),
    "a grid of 1": (lambda t: {"grid": "1x5"}, "grid '1x5': must have 2 to 10,000 points"),
    "no grid": (lambda t: {"grid": "big"}, "grid 'big': give two numbers for a plane (25x25)"),
    "a line through three": (
        lambda t: {"plane": "line"},
        "plane line takes ORIGIN and B; 3 models are given",
    ),
    "a plane through two": (
        lambda t: {"plane": "checkpoints", "others": [t.b]},
        "plane checkpoints takes ORIGIN, B and C; 2 models are given",
    ),
    "a random plane through others": (
        lambda t: {"plane": "random"},
        "plane random takes ORIGIN alone; 3 models",
    ),
    "a base off a random plane": (
        lambda t: {"others": [], "base": t.base},
        "plane random contains no other model: leave `base` out",
    ),
    "a plane of one direction": (lambda t: {"grid": 5}, "a plane has two directions"),
    "a line of two directions": (
        lambda t: {"others": [t.b], "grid": "5x5"},
        "a line has one direction; give grid 5",
    ),
    "an unknown plane": (
        lambda t: {"plane": "flat"},
        "plane 'flat': choose from checkpoints, line",
    ),
    "an unknown normalization": (
        lambda t: {"normalize": "max"},
        "normalize 'max': choose from filter",
    ),
    "an unknown metric": (
        lambda t: {"metrics": ["f1"]},
        "metric 'f1' cannot be measured here; choose from exact_match, kl, loss",
    ),
    "a span that falls": (lambda t: {"span": "1:-1"}, "span '1:-1': give low:high"),
    "a span of three": (lambda t: {"span": "0:1,0:1,0:1"}, "give low:high"),
    "a span for two on a line": (
        lambda t: {"others": [t.b], "span": "0:1,0:1"},
        "span '0:1,0:1': 2 ranges, but 1 direction",
    ),
    "a model twice": (
        lambda t: {"others": [t.b, t.origin]},
        "was passed as both the fine-tune and the base",
    ),
    "the same data twice": (
        lambda t: {"data": [t.train, t.train]},
        "data files with the same name",
    ),
    "no trajectory": (
        lambda t: {"plane": "trajectory", "others": []},
        "the last checkpoint as ORIGIN",
    ),
    "a folder without checkpoints": (
        lambda t: {"plane": "trajectory", "others": [t.train.parent]},
        "contains no checkpoint-10",
    ),
    "a folder of nothing": (lambda t: {"others": [t.b, t.b / "x"]}, "no such file or folder"),
    "no regular expression": (lambda t: {"include": "("}, "include: '(' is not a valid regular"),
    "a model in memory among folders": (
        lambda t: {"others": [t.b, nn.Linear(2, 2)]},
        "models in folders and models in memory do not mix",
    ),
    "an empty limit": (lambda t: {"limit": 0}, "limit=0: must be at least 1 row"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_before_any_work(three: Three, tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    spec = {"others": three.others, "data": three.data, **change(three)}
    with pytest.raises(DeltaLensError) as caught:
        deltalens.scan_landscape(three.origin, tmp_path / "s", **spec)
    assert message in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_every_mismatch_of_every_checkpoint_is_listed_at_once(three: Three, tmp_path: Path) -> None:
    wide, deep = tmp_path / "wide", tmp_path / "deep"
    save(llama(tied=False, intermediate_size=32), wide)
    save(llama(tied=False, num_hidden_layers=3), deep)
    with pytest.raises(PairingError) as caught:
        deltalens.scan_landscape(
            three.origin, tmp_path / "s", others=[wide, deep], data=three.data, strict=True
        )
    message = str(caught.value)
    for block in (0, 1):
        for name in ("gate_proj", "up_proj", "down_proj"):
            assert f"model.layers.{block}.mlp.{name}.weight' is" in message
    assert "model.layers.2.self_attn.q_proj.weight" in message
    assert str(wide) in message
    assert str(deep) in message


def test_three_on_a_line_are_told_so_and_offered_a_line(tmp_path: Path) -> None:
    origin, b, c = quadratics(3)
    with torch.no_grad():
        for one, two, three in zip(
            origin.parameters(), b.parameters(), c.parameters(), strict=True
        ):
            three.copy_(one + 0.3 * (two - one))
    with pytest.raises(DeltaLensError, match=r"lie on one line[\s\S]*\(plane line\)"):
        scan(origin, tmp_path / "s", others=[b, c])
    assert not (tmp_path / "s").exists()


def test_three_folders_on_a_line_are_told_so(tmp_path: Path) -> None:
    three = write_three(tmp_path / "three", Kind())
    from safetensors.torch import load_file, save_file

    one, two = (load_file(f / "model.safetensors") for f in (three.origin, three.b))
    between = {name: one[name] + 0.5 * (two[name] - one[name]) for name in one}
    save_file(between, three.c / "model.safetensors", {"format": "pt"})
    with pytest.raises(DeltaLensError, match="ft, continued, masked lie on one line"):
        deltalens.scan_landscape(three.origin, tmp_path / "s", others=three.others, data=three.data)
    assert not (tmp_path / "s").exists()


def test_two_that_are_the_same_are_told_so(tmp_path: Path) -> None:
    origin, b = quadratics(2)
    b.load_state_dict(origin.state_dict())
    with pytest.raises(DeltaLensError, match="origin and b are the same model"):
        scan(origin, tmp_path / "s", others=[b])


def test_trajectory_needs_as_many_checkpoints_as_directions(tmp_path: Path) -> None:
    origin, b = quadratics(2)
    with pytest.raises(DeltaLensError, match="needs at least 3 checkpoints, and there are 2"):
        scan(origin, tmp_path / "s", others=[b], plane="trajectory", grid="3x3")


def test_models_in_memory_that_do_not_match_are_listed(tmp_path: Path) -> None:
    one, two = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.Sequential(nn.Linear(2, 4))
    with pytest.raises(PairingError) as caught:
        scan(one, tmp_path / "s", others=[two])
    assert "'0.weight' is [3, 2] in the origin, [4, 2] in b" in str(caught.value)
    assert "b has no '1.weight'" in str(caught.value)


def test_model_in_memory_needs_a_metric(tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="metric of your own"):
        deltalens.scan_landscape(nn.Linear(2, 2), tmp_path / "s")


def test_hessian_of_a_model_in_memory_needs_a_loss(three: Three, tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="requires a loss of your own: give `loss`"):
        scan(quadratics(1)[0], tmp_path / "s", plane="hessian", loss=None, data=three.data)


def test_hessian_needs_a_loss_that_can_be_differentiated(three: Three, tmp_path: Path) -> None:
    with pytest.raises(DeltaLensError, match="plane hessian differentiates the loss"):
        deltalens.scan_landscape(three.origin, tmp_path / "s", plane="hessian", metrics=["kl"])


def test_output_folder_that_is_an_input_is_refused(three: Three) -> None:
    with pytest.raises(DeltaLensError, match="is \\(or lies in\\) the input"):
        deltalens.scan_landscape(three.origin, three.b / "s", others=three.others, data=three.data)


@pytest.mark.parametrize("text", ["0x3", "3x1", "-2", "3x3x3", "", "2x", "10001"])
def test_grid_that_is_none(text: str) -> None:
    with pytest.raises(DeltaLensError, match="grid"):
        parse_grid(text)


@pytest.mark.parametrize("text", ["", "1", "a:b", "0:nan", "0:inf", "2:2", "0:1,", "0:1:2"])
def test_range_that_is_none(text: str) -> None:
    with pytest.raises(DeltaLensError, match="span"):
        parse_range(text)


def test_command_says_it_in_one_line_and_exits_with_2(three: Three, tmp_path: Path) -> None:
    result = command("landscape", three.origin, three.b, "-o", tmp_path / "s")
    assert result.exit_code == 2
    assert result.stderr.startswith("deltalens: a landscape needs --data")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
