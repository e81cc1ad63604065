"""Numbers that a dtype cannot hold: refused by name, never written as infinity."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import deltalens
from deltalens import DeltaLensError
from tests.support.checkpoint_files import save, tuned, weights
from tests.support.checkpoint_pairs import Pair, fine_tune, plain, save_pair, state_of
from tests.support.models import initialized, llama
from tests.support.runs import captured, command, journal

pytestmark = pytest.mark.bad_input

PLACE = "model.layers.1.mlp.weight"


def stored_pair(tmp_path: Path, ft: dict[str, Tensor], base: dict[str, Tensor]) -> Pair:
    return Pair(save(tmp_path / "ft", ft), save(tmp_path / "base", base))


@pytest.mark.parametrize("strategy", ["salient", "trivial", "random"])
def test_drop_refuses_what_rescaling_takes_beyond_fp16(tmp_path: Path, strategy: str) -> None:
    base = weights(dtype=torch.float16)
    ft = tuned(base)
    ft[PLACE].fill_(7_000.0)
    assert (ft[PLACE] / torch.tensor(0.1, dtype=torch.float16)).isinf().all(), "torch would, too"
    both = stored_pair(tmp_path, ft, base)
    spec = {"strategy": strategy, "rate": "0.9", "rescale": True}
    with pytest.raises(DeltaLensError) as caught:
        deltalens.drop(both.ft, both.base, tmp_path / "out", **spec)
    said = str(caught.value)
    assert f"{both.ft / 'model.safetensors'}: '{PLACE}', flat index " in said
    assert "rescaled at rate 0.9 exceeds the largest float16 number, 6.55e+04" in said
    assert "do not `rescale`" in said
    assert not (tmp_path / "out").exists()
    deltalens.drop(both.ft, both.base, tmp_path / "out", **{**spec, "rate": "0.85"})


def test_what_is_put_back_may_be_as_large_as_it_was(tmp_path: Path) -> None:
    """Only what is kept is rescaled."""
    base = {"w": torch.zeros(10, dtype=torch.float16), "v": torch.zeros(1, dtype=torch.float16)}
    ft = {"w": torch.full((10,), 1.0, dtype=torch.float16), "v": torch.ones(1).half()}
    ft["w"][3] = 60_000.0
    both = stored_pair(tmp_path, ft, base)
    deltalens.drop(
        both.ft, both.base, tmp_path / "out", strategy="salient", rate="0.1", rescale=True
    )


def test_drop_refuses_a_base_that_the_fine_tune_s_dtype_cannot_hold(tmp_path: Path) -> None:
    base = weights(dtype=torch.bfloat16)
    ft = {name: tensor.half() for name, tensor in tuned(base).items()}
    base[PLACE][0, 2] = 1e6
    both = stored_pair(tmp_path, ft, base)
    with pytest.raises(
        DeltaLensError, match=r"flat index 2: the value of the base exceeds the largest float16"
    ):
        deltalens.drop(both.ft, both.base, tmp_path / "out", rate="1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["stored in fp16", "loaded in fp16"])
def test_study_goes_on_after_a_cell_that_rescaling_makes_infinite(tmp_path: Path, how: str) -> None:
    stored = torch.float16 if how == "stored in fp16" else torch.float32
    model = initialized(lambda: llama(False), seed=1)
    both = save_pair(tmp_path, model, stored)
    with torch.no_grad():
        model.model.norm.weight.fill_(9_000.0)
    model.save_pretrained(both.ft)
    spec = {"rates": ["0.5", "0.9"], "strategies": ["trivial"], "dtype": "float16"}
    live = captured(both, tmp_path / "plain", **spec)
    assert len(live.states) == 4
    captured(both, tmp_path / "rescaled", rescale=True, **spec)
    (failure,) = deltalens.load_study(tmp_path / "rescaled").failures
    assert re.search(r"'model.norm.weight'.*rescaled at rate 0.9", str(failure.reason))
    rates = [line["setting"]["rate"] for line in journal(tmp_path / "rescaled")]
    assert rates == [0.0, 0.5, 1.0]


def test_command_counts_cells_that_fail_and_leaves_exit_code_3(tmp_path: Path) -> None:
    model = initialized(lambda: llama(False), seed=1)
    both = save_pair(tmp_path, model, torch.float16)
    with torch.no_grad():
        model.model.norm.weight.fill_(9_000.0)
    model.save_pretrained(both.ft)
    out, spec = tmp_path / "s", ("--rates", "0.5,0.9", "--strategies", "trivial", "--rescale")
    line = ("drop-study", both.ft, both.base, *spec, "--fidelity-tokens", 4, "-o", out)
    for _ in (1, 2):
        result = command(*line)
        assert result.exit_code == 3, result.output
        assert "1 cell failed; the same call measures them again" in result.stdout
        assert "failed: strategy trivial, scope tensor, rate 0.9, seed 0: " in result.stdout
    result = command(*line, "--json")
    assert result.exit_code == 3
    (failed,) = json.loads(result.stdout)["failed"]
    assert failed["setting"]["rate"] == 0.9
    assert "rescaled at rate 0.9" in failed["reason"]


def test_study_has_no_cell_of_a_base_beyond_the_fine_tune_s_dtype(tmp_path: Path) -> None:
    model = initialized(lambda: llama(False), seed=1)
    both = save_pair(tmp_path, model)
    fine_tune(model, seed=4)
    model.half().save_pretrained(both.ft)
    wide = plain(both.base)
    with torch.no_grad():
        wide.model.norm.weight[1] = 1e6
    wide.save_pretrained(both.base)
    assert state_of(plain(both.base, torch.float16))["model.norm.weight"][1].isinf()
    reason = r"'model.norm.weight', flat index 1: the value of the base"
    with pytest.raises(DeltaLensError, match=reason):
        captured(both, tmp_path / "1", rates=["1"], strategies=["trivial"])
    captured(both, tmp_path / "0.5", rates=["0.5"], strategies=["trivial"])
    (failure,) = deltalens.load_study(tmp_path / "0.5").failures
    assert failure.setting["rate"] == 1
    assert re.search(reason, str(failure.reason))
