"""Two checkpoints that do not fit each other, or leave nothing to study, are refused by name."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor

import deltalens
from deltalens import DeltaLensError
from tests.support.checkpoint_files import left_in, save, tuned, weights

pytestmark = pytest.mark.bad_input

Run = Callable[[Path, Path, Path], object]

RUNS: dict[str, Run] = {
    "inspect": deltalens.inspect,
    "drop": deltalens.drop,
    "drop, random": lambda ft, base, out: deltalens.drop(ft, base, out, strategy="random"),
    "drop, changed": lambda ft, base, out: deltalens.drop(ft, base, out, changed_only=True),
}


def pair_of(tmp_path: Path, ft: dict[str, Tensor], base: dict[str, Tensor]) -> tuple[Path, Path]:
    return save(tmp_path / "ft", ft), save(tmp_path / "base", base)


def refusal(ft: Path, base: Path, run: Run = deltalens.inspect) -> str:
    before = left_in(ft.parent)
    with pytest.raises(DeltaLensError) as caught:
        run(ft, base, ft.parent / "new" / "out")
    assert left_in(ft.parent) == before
    return str(caught.value)


def renamed(tensors: dict[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_no_tensor_in_common_shows_names_of_both(tmp_path: Path, run: Run) -> None:
    other = {"transformer.wte": torch.ones(6, 4), "transformer.h.0.attn": torch.ones(4, 4)}
    ft, base = pair_of(tmp_path, weights(), other)
    message = refusal(ft, base, run)
    assert message.startswith(f"{ft} and {base} have no tensor in common: one starts with 'model.")
    assert "the other with 'transformer." in message
    assert message.endswith("Do they have the same architecture?")


def test_no_tensor_in_common_among_thousands_is_found_at_once(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.{k}_proj.weight" for i in range(800) for k in "qkvo"]
    ft = {name: torch.ones(1) for name in names}
    base = renamed(ft, lambda n: n.replace("model.layers", "h").replace("self_attn", "attention"))
    begun = time.monotonic()
    assert "no tensor in common" in refusal(*pair_of(tmp_path, ft, base))
    assert time.monotonic() - begun < 15


def test_every_shape_different_asks_for_the_right_base(tmp_path: Path) -> None:
    wider = {name: torch.ones(*tensor.shape, 2) for name, tensor in weights().items()}
    ft, base = pair_of(tmp_path, weights(), wider)
    message = refusal(ft, base)
    assert message.startswith(f"{ft} does not match {base}. Every shape differs: is this the right")
    assert "'model.norm.weight' is [4] in the fine-tune and [4, 2] in the base" in message
    assert message.count("\n  - ") == 4


def test_one_shape_different_is_named_with_both_shapes(tmp_path: Path) -> None:
    ft, base = pair_of(tmp_path, weights(), {**weights(), "model.norm.weight": torch.ones(5)})
    message = refusal(ft, base)
    assert "Every shape differs" not in message
    assert "leave tensors out with `exclude`" in message
    assert message.endswith("'model.norm.weight' is [4] in the fine-tune and [5] in the base")


def test_a_tensor_of_one_side_only_is_named_with_its_nearest_when_strict(tmp_path: Path) -> None:
    base = renamed(weights(), lambda name: name.replace("norm", "final_norm"))
    both = pair_of(tmp_path, weights(), base)
    message = refusal(*both, lambda ft, base, out: deltalens.inspect(ft, base, strict=True))
    assert "'model.norm.weight' (F32 [4]) is not in the base" in message
    assert "(most similar: 'model.final_norm.weight')" in message
    assert "'model.final_norm.weight' (F32 [4]) is in the base only" in message


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_most_of_it_on_one_side_only_is_refused_with_the_share(tmp_path: Path, run: Run) -> None:
    rename = {"model.layers.0.mlp.weight": "a", "model.embed_tokens.weight": "b"}
    base = renamed(weights(), lambda name: rename.get(name, name))
    message = refusal(*pair_of(tmp_path, tuned(weights()), base), run)
    assert "  - only 20 % of the entries are in both" in message
    assert "'model.layers.0.mlp.weight' (F32 [4, 4]) is not in the base" in message
    assert "'a' (F32 [4, 4]) is in the base only" in message


def test_integer_weights_stay_as_the_fine_tune_has_them_and_it_is_said(tmp_path: Path) -> None:
    integers = torch.arange(6, dtype=torch.int32)
    base = weights()
    ft, base_path = pair_of(
        tmp_path, {**tuned(base), "ids": integers}, {**base, "ids": integers + 1}
    )
    result = deltalens.drop(ft, base_path, tmp_path / "out", rate=1)
    assert result.pairing.kept == {"ids": "I32 is left as the fine-tune has it"}
    assert torch.equal(_stored(tmp_path / "out", "ids"), integers)


def _stored(folder: Path, name: str) -> Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")[name]


def test_quantized_weights_stay_with_their_scales(tmp_path: Path) -> None:
    quantized = {"q.weight": torch.ones(4, dtype=torch.int8), "q.scales": torch.ones(1)}
    config = {"quantization_config": {"bits": 8}}
    ft = save(tmp_path / "ft", {**tuned(weights()), **quantized}, config)
    base = save(tmp_path / "base", {**weights(), **quantized}, config)
    assert deltalens.pair(ft, base).kept == {
        "q.weight": "I8 is left as the fine-tune has it",
        "q.scales": "belongs to a quantized weight",
    }


def test_quantized_weights_alone_leave_nothing_and_say_why(tmp_path: Path) -> None:
    quantized = {"q.weight": torch.ones(4, dtype=torch.int8), "q.scales": torch.ones(1)}
    config = {"quantization_config": {"bits": 8}}
    ft = save(tmp_path / "ft", quantized, config)
    base = save(tmp_path / "base", quantized, config)
    message = refusal(ft, base)
    assert message.startswith("no floating-point tensor is left to compare:")
    assert "q.weight: I8 is left as the fine-tune has it" in message
    assert "q.scales: belongs to a quantized weight" in message


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("side", ["fine-tune", "base"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_number_that_is_not_finite_is_named_with_its_place(
    tmp_path: Path, run: Run, side: str, value: str, dtype: torch.dtype
) -> None:
    base = weights(dtype=dtype)
    models = {"fine-tune": tuned(base), "base": base}
    models[side]["model.layers.1.mlp.weight"].view(-1)[5] = float(value)
    ft, base_path = pair_of(tmp_path, models["fine-tune"], models["base"])
    file = (ft if side == "fine-tune" else base_path) / "model.safetensors"
    assert refusal(ft, base_path, run) == (
        f"{file}: {value} in the {side}'s tensor 'model.layers.1.mlp.weight', flat index 5; "
        "replace the damaged checkpoint, or leave the tensor out with `exclude`"
    )


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_difference_beyond_fp32_is_named(tmp_path: Path, run: Run) -> None:
    base = weights()
    ft = tuned(base)
    base["model.norm.weight"][1], ft["model.norm.weight"][1] = -3e38, 3e38
    message = refusal(*pair_of(tmp_path, ft, base), run)
    assert ": 'model.norm.weight', flat index 1: " in message
    assert "overflows fp32" in message


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_double_precision_beyond_fp32_is_named_too(tmp_path: Path, run: Run) -> None:
    base = weights(dtype=torch.float64)
    ft = tuned(base)
    base["model.norm.weight"][1] = 1e300
    assert ": 'model.norm.weight', flat index 1: " in refusal(*pair_of(tmp_path, ft, base), run)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_identical_models_have_no_delta(tmp_path: Path, run: Run) -> None:
    ft, base = pair_of(tmp_path, weights(), weights())
    assert refusal(ft, base, run) == (
        f"{ft} and {base} are identical in all 60 entries that take part: there is no delta to "
        "study"
    )


@pytest.mark.parametrize("rate", ["-0.1", "1.1", 2, -1, "1e9", Fraction(3, 2)])
def test_a_rate_outside_its_range_is_refused_with_the_rate(
    tmp_path: Path, rate: str | int | Fraction
) -> None:
    ft, base = pair_of(tmp_path, tuned(weights()), weights())
    message = refusal(ft, base, lambda *given: deltalens.drop(*given, rate=rate))
    assert message == f"rate {rate} is outside [0, 1]"


@pytest.mark.parametrize("rate", ["", "most", "nan", "inf", "0,5", "0x1", float("nan")])
def test_a_rate_that_is_no_number_is_refused(tmp_path: Path, rate: str | float) -> None:
    ft, base = pair_of(tmp_path, tuned(weights()), weights())
    message = refusal(ft, base, lambda *given: deltalens.drop(*given, rate=rate))
    assert message == f"rate {str(rate)!r} is not a number between 0 and 1"


@pytest.mark.parametrize("rate", ["1e999999999", "1e-999999999", "-1e999999999"])
def test_a_rate_with_a_monstrous_exponent_is_refused_at_once(rate: str) -> None:
    from deltalens.numerics.rates import exact_rate

    begun = time.monotonic()
    with pytest.raises(DeltaLensError, match=re.escape(rate)):
        exact_rate(rate)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, option: str) -> None:
    ft, base = pair_of(tmp_path, tuned(weights()), weights())
    with pytest.raises(DeltaLensError, match=rf"{option}: '\(' is not a valid regular expression"):
        deltalens.inspect(ft, base, **{option: "("})


def test_patterns_that_leave_nothing_show_what_names_look_like(tmp_path: Path) -> None:
    ft, base = pair_of(tmp_path, tuned(weights()), weights())
    with pytest.raises(DeltaLensError, match=r"matches no tensor of .*names such as model\."):
        deltalens.inspect(ft, base, include="decoder")


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_one_model_given_twice_is_said_before_it_is_read(tmp_path: Path, run: Run) -> None:
    ft = save(tmp_path / "ft", weights())
    assert "was passed as both the fine-tune and the base" in refusal(
        ft, tmp_path / "ft" / ".." / "ft", run
    )
