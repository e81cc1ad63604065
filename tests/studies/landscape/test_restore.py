"""After a scan, whatever happened to it, the model's bits are what they were; and at the marked
points it is the checkpoint itself."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deltalens
from deltalens.scoring import loading as module
from deltalens.scoring.file_scoring import Scoring
from deltalens.scoring.rows import read_rows
from tests.studies.landscape.conftest import Three, write_three
from tests.support.checkpoint_pairs import Kind, differing, plain, state_of
from tests.support.models import tokenizer
from tests.support.quadratics import Quadratic, Raising, quadratics, scan


class Loaded:
    """Keeps hold of every model that a scan loads, and of its state as it was loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[nn.Module] = []
        self.before: list[dict[str, torch.Tensor]] = []
        load = module.load_model

        def keeping(*given: Any) -> Any:
            loaded = load(*given)
            self.models.append(loaded.model)
            self.before.append(state_of(loaded.model))
            return loaded

        monkeypatch.setattr(module, "load_model", keeping)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("plane", ["checkpoints", "random"])
def test_model_has_its_bits_back_after_a_scan(
    any_three: tuple[Kind, Three],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plane: str,
    dtype: str,
) -> None:
    kind, three = any_three
    loaded = Loaded(monkeypatch)
    moved: list[bool] = []

    def metric(model: nn.Module) -> dict[str, float]:
        moved.append(bool(differing(state_of(model), loaded.before[0])))
        return {"x": 1.0}

    others = three.others if plane == "checkpoints" else []
    deltalens.scan_landscape(
        three.origin,
        tmp_path / "s",
        others=others,
        plane=plane,
        grid="2x3",
        dtype=dtype,
        metric=metric,
    )
    after = state_of(loaded.models[0])
    assert differing(after, loaded.before[0]) == []
    assert differing(after, state_of(plain(three.origin, dtype=after_dtype(dtype)))) == []
    assert moved[0] is False, "the first point is the origin itself"
    assert all(moved[1:]), "nothing was moved"
    if kind.tied:
        model: Any = loaded.models[0]
        assert model.lm_head.weight is model.model.embed_tokens.weight


def after_dtype(dtype: str) -> torch.dtype:
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()], ids=["e", "^C"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_model_has_its_bits_back_after_an_exception_in_the_middle(
    any_three: tuple[Kind, Three],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    dtype: str,
) -> None:
    loaded, three = Loaded(monkeypatch), any_three[1]
    metric = Raising(6, error, lambda model: {"x": 1.0})
    interrupted = isinstance(error, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        deltalens.scan_landscape(
            three.origin,
            tmp_path / "s",
            others=three.others,
            grid="3x3",
            metric=metric,
            dtype=dtype,
        )
    assert differing(state_of(loaded.models[0]), loaded.before[0]) == []
    study = deltalens.load_study(tmp_path / "s")
    # A point that fails does not end the study.
    assert len(study.cells) == (5 if interrupted else study.facts["points"] - 1)
    assert len(study.failures) == (0 if interrupted else 1)


def test_model_has_its_bits_back_when_interrupted_amid_a_point(
    three: Three, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, add, left = Loaded(monkeypatch), torch.add, 100

    def stopping(*given: Any, **more: Any) -> Any:
        nonlocal left
        moved = add(*given, **more)
        if "out" in more and "alpha" in more:  # As a point of a plane is written into the model.
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(torch, "add", stopping)
    with pytest.raises(KeyboardInterrupt):
        deltalens.scan_landscape(
            three.origin,
            tmp_path / "s",
            others=three.others,
            grid="5x5",
            metric=lambda model: {"x": 1.0},
        )
    assert differing(state_of(loaded.models[0]), loaded.before[0]) == []


def test_tied_weight_that_is_stored_twice_moves_once(tmp_path: Path) -> None:
    three = write_three(tmp_path / "three", Kind(tied=True))
    file = three.origin / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    record = deltalens.scan_landscape(
        three.origin, tmp_path / "s", grid="2x2", metric=lambda model: {"x": 1.0}
    )
    model = plain(three.origin)
    assert record.facts["entries"] == sum(p.numel() for p in model.parameters())


def test_module_in_memory_has_its_bits_back_and_its_buffers_never_moved(tmp_path: Path) -> None:
    origin, b, c = quadratics(3)
    with torch.no_grad():
        origin.bias[0] = -0.0
        origin.bias[1] = 5e-324
    before = state_of(origin)

    def metric(model: Quadratic) -> dict[str, float]:
        for name in ("curvature", "slope", "steps"):
            assert torch.equal(getattr(model, name), before[name])
        return {"loss": float(model.loss())}

    scan(origin, tmp_path / "s", others=[b, c], grid="3x5", metric=metric)
    assert differing(state_of(origin), before) == []


@pytest.mark.parametrize("low_memory", [False, True])
def test_loss_at_the_marked_points_is_the_checkpoints_own(
    any_three: tuple[Kind, Three], tmp_path: Path, low_memory: bool
) -> None:
    three = any_three[1]
    record = deltalens.scan_landscape(
        three.origin,
        tmp_path / "s",
        others=three.others,
        data=three.data,
        grid="2x2",
        low_memory=low_memory,
    )
    cells = record.cells[record.cells["metric"] == "loss"].set_index(["mark", "data"])["value"]
    for folder in (three.origin, *three.others):
        model = plain(folder, dtype=torch.float32).eval()
        for file in three.data:
            own = Scoring(read_rows(file), model, tokenizer(), 4096).measure(model)["loss"].value
            assert cells[folder.name, file.stem] == pytest.approx(own, rel=1e-5)


def test_excluded_tensors_stay_as_the_origin_has_them(three: Three, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def metric(model: nn.Module) -> dict[str, float]:
        seen.append(state_of(model))
        return {"x": 1.0}

    deltalens.scan_landscape(
        three.origin,
        tmp_path / "s",
        others=three.others,
        grid="2x2",
        metric=metric,
        exclude="mlp|embed|norm",
    )
    moved = {name for state in seen[1:] for name in differing(state, seen[0])}
    assert moved
    assert all("self_attn" in name or "lm_head" in name for name in moved), moved
