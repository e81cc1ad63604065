"""How many entries are trained, and what share that is."""

from fractions import Fraction
from typing import Any

import pytest

from deltalens import DeltaLensError
from deltalens.methods.salience.targets import choose_targets
from deltalens.methods.sparse.budget import Budget, plan_budget
from tests.support.models import shapes_of, tiny


def budget(model: Any, scope: str = "global", targets: str = "attention", **how: Any) -> Budget:
    layers = choose_targets(model, targets, shapes_only=True)
    return plan_budget(model, layers, scope=scope, **how)


@pytest.mark.parametrize(
    ("name", "trained", "percent", "printed"),
    [
        ("gemma2-2b", 25_559_040, 0.968, 0.97),
        ("qwen2-7b", 40_370_176, 0.527, 0.53),
        ("llama3-8b", 54_525_952, 0.674, 0.67),
    ],
)
def test_as_many_entries_as_a_lora_of_rank_64_are_the_papers_share(
    name: str, trained: int, percent: float, printed: float
) -> None:
    model = shapes_of(name)
    found = budget(model, like_lora=64)
    assert found.trained == trained
    assert round(100 * found.share_with_adapter, 3) == percent
    assert round(100 * found.share_with_adapter, 2) == printed
    assert budget(model, "tensor", like_lora=64).trained == trained


def test_the_entries_of_a_lora_are_those_that_peft_makes() -> None:
    import peft

    model = tiny("llama", hidden_size=32, num_key_value_heads=2)
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    found = budget(model, like_lora=3)
    adapted = peft.get_peft_model(model, config)
    trainable, everything = adapted.get_nb_trainable_parameters()
    assert (found.trained, found.model_parameters + found.trained) == (trainable, everything)
    assert found.share_with_adapter == trainable / everything


@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
@pytest.mark.parametrize("density", ["0.05", 0.5, Fraction(1, 3), 1])
def test_a_density_is_of_each_units_entries_exactly(scope: str, density: Any) -> None:
    found = budget(tiny("llama"), scope, density=density)
    exact = Fraction(str(density)) if not isinstance(density, Fraction) else density
    assert [unit.count for unit in found.units] == [round(exact * u.size) for u in found.units]
    assert len(found.units) == {"global": 1, "layer": 2, "tensor": 8}[scope]


def test_a_share_of_the_model_counts_all_its_parameters_once() -> None:
    model = tiny("llama", vocab_size=31, tie_word_embeddings=True)
    total = sum(parameter.numel() for parameter in model.parameters())
    found = budget(model, of_model="1 %")
    assert found == budget(model, of_model=0.01)
    assert found.trained == round(Fraction(1, 100) * total)
    assert found.share_of_model == pytest.approx(0.01, rel=1e-2)
    assert f"{found.trained:,} entries trained" in str(found)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give one of density, like_lora and of_model; given: none"),
        ({"density": 0.1, "like_lora": 2}, "given: density=0.1, like_lora=2"),
        ({"density": 0}, "density 0: must be above 0, and at most 1"),
        ({"density": 1.5}, r"density 1.5 is outside \[0, 1\]"),
        ({"density": "x"}, "density 'x' is not a number"),
        ({"like_lora": 0}, "like_lora=0: a LoRA rank"),
        ({"like_lora": 1000}, r"(?s)like_lora=1000: more than there is.*224,000 of 1,536"),
        ({"of_model": 0.9}, "of_model 0.9: the adapted weights are only"),
        (
            {"density": "0.000001"},
            r"(?s)so few that nothing is trained in.*1,536 entries",
        ),
        ({"density": "0.001", "scope": "tensor"}, r"(?s)k_proj.*rank all together"),
        ({"density": "0.1", "scope": "head"}, "head"),
    ],
)
def test_an_impossible_budget_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        budget(tiny("llama", vocab_size=31), **how)
