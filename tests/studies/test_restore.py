"""After a study, whatever happened to it, the model's bits are the fine-tune's."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deltalens
from deltalens.errors import DeltaLensError
from deltalens.scoring import loading as module
from deltalens.studies.slots import Slot
from tests.support.checkpoint_pairs import Kind, Pair, PairOf, differing, plain, state_of
from tests.support.runs import FEW, Capture, StopAfter, captured, on_each_cell
from tests.support.studies import drop_study

KINDS = [
    Kind("llama", torch.float32),
    Kind("llama", torch.bfloat16, sharded=True, tied=True),
    Kind("gpt2", torch.bfloat16, tied=True),
    Kind("bert", torch.float32, tied=True),
    Kind("mixtral", torch.bfloat16),
    Kind("mixtral", torch.float32, sharded=True, tied=True),
]
ASKED: dict[str, Any] = {"rates": ["0.4", "0.8"], "seeds": 1}


@pytest.fixture(params=KINDS, ids=str)
def pair(request: pytest.FixtureRequest, pair_of: PairOf) -> Pair:
    found: Pair = pair_of(request.param)
    return found


def has_the_bits_of(model: nn.Module | None, folder: Path) -> bool:
    assert model is not None, "the study never showed its model"
    return differing(state_of(model), state_of(plain(folder))) == []


def test_model_has_its_bits_back_after_a_study(pair: Pair, tmp_path: Path) -> None:
    capture = captured(pair, tmp_path / "study", **ASKED)
    last = max(capture.states, key=lambda point: (point[0] == "random", point[1] < 1, point[1]))
    assert differing(capture.states[last], state_of(plain(pair.ft))), "nothing was edited"
    assert has_the_bits_of(capture.model, pair.ft)


@pytest.mark.parametrize(
    ("error", "cell"),
    [(RuntimeError("no more"), 1), (RuntimeError("no more"), 2), (KeyboardInterrupt(), 5)],
    ids=["1", "2", "5"],
)
def test_model_has_its_bits_back_after_a_metric_that_raises(
    pair: Pair, tmp_path: Path, error: BaseException, cell: int
) -> None:
    capture, stop = Capture(), StopAfter(cell, error)

    def metric(model: nn.Module) -> dict[str, float]:
        found = capture.metric(model)
        stop()
        return found

    # The first cell is the fine-tune; any other that fails does not end the study.
    ends = cell == 1 or isinstance(error, KeyboardInterrupt)
    with pytest.raises(type(error)) if ends else nullcontext():
        study = deltalens.drop_study(pair.ft, pair.base, tmp_path / "study", metric=metric, **ASKED)
        assert [failure.reason for failure in study.failures] == ["RuntimeError: no more"]
    assert has_the_bits_of(capture.model, pair.ft)


def test_model_has_its_bits_back_when_interrupted_amid_an_edit(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture, stop = Capture(), StopAfter(30, KeyboardInterrupt())
    load, write = module.load_model, Slot.write

    def keeping(*given: Any) -> Any:
        loaded = load(*given)
        capture.model = loaded.model
        return loaded

    def stopping(self: Slot, start: int, values: torch.Tensor) -> None:
        write(self, start, values)
        stop()

    monkeypatch.setattr(module, "load_model", keeping)
    monkeypatch.setattr(Slot, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", metric=capture.metric, **ASKED)
    assert has_the_bits_of(capture.model, pair.ft)


def test_model_has_its_bits_back_when_the_record_cannot_be_written(
    pair_of: PairOf, tmp_path: Path
) -> None:
    pair, capture = pair_of(family="llama"), Capture()
    watch = on_each_cell(StopAfter(2, OSError("the caller's hook")))
    with pytest.raises(OSError, match="the caller's hook"):
        deltalens.drop_study(
            pair.ft, pair.base, tmp_path / "s", metric=capture.metric, watch=watch, **ASKED
        )
    assert has_the_bits_of(capture.model, pair.ft)


def test_model_has_its_bits_back_after_fidelity_without_a_metric(
    pair_of: PairOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, loaded = pair_of(family="opt", dtype=torch.bfloat16), []
    load = module.load_model
    monkeypatch.setattr(
        module, "load_model", lambda *given: loaded.append(load(*given)) or loaded[-1]
    )
    drop_study(pair.ft, pair.base, tmp_path / "s", fidelity=FEW, **ASKED)
    assert has_the_bits_of(loaded[0].model, pair.ft)


def test_model_that_does_not_hold_the_fine_tune_is_refused_before_the_first_cell(
    pair_of: PairOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, load = pair_of(family="llama"), module.load_model

    def wrong(*given: Any) -> Any:
        loaded = load(*given)
        with torch.no_grad():
            loaded.model.model.norm.weight[3] += 1e-6
        return loaded

    monkeypatch.setattr(module, "load_model", wrong)
    capture = Capture()
    with pytest.raises(
        DeltaLensError, match=r"tensors of the loaded model differ[\s\S]*model\.norm\.weight"
    ):
        deltalens.drop_study(pair.ft, pair.base, tmp_path / "s", metric=capture.metric, **ASKED)
    assert capture.measured == 0
