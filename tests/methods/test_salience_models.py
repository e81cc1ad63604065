"""Salience of models of every family, which are afterwards as they were before."""

import copy
import itertools
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from deltalens import DeltaLensError, salience
from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.methods.salience import choose_targets
from tests.support import models
from tests.support.mft_models import bits_of
from tests.support.oracles.salience import Twin, batches_for, two_layers

METRICS = [*SALIENCE_METRICS]
FAMILIES = ("llama", "gpt2", "opt", "bert", "roberta", "qwen2", "gemma2")


def made(family: str, tied: bool = True) -> Any:
    fitting = {**models.ids_of(models.tokenizer()), "tie_word_embeddings": tied}
    return models.initialized(lambda: models.tiny(family, **fitting), 7)


def batches_of_ids(count: int = 2, examples: int = 3, length: int = 10) -> list[dict[str, Any]]:
    """Rows of ids; the later examples of a batch have fewer labels."""
    draw = torch.Generator().manual_seed(2)
    batches = []
    for _ in range(count):
        ids = torch.randint(5, 30, (examples, length), generator=draw)
        labels = ids.clone()
        for example in range(examples):
            labels[example, length - 2 * example :] = -100
        batches.append({"input_ids": ids, "labels": labels})
    return batches


def attention_weights(model: Any) -> list[str]:
    return [layer.weight_name for layer in choose_targets(model)]


# --- families -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_of_every_family(family: str) -> None:
    model = made(family)
    found = salience(model, batches_of_ids(), "all", steps=2)
    assert [*found] == METRICS
    for metric, measured in found.items():
        assert [*measured.scores] == attention_weights(model)
        assert not measured.notes, metric
        assert all(bool(scores.any()) for scores in measured.scores.values()), metric
        kept = measured.indices("0.05")
        assert sum(map(len, kept.values())) == round(0.05 * measured.entries)


@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_in_one_pass_is_that_of_single_examples(family: str) -> None:
    model, batches = made(family), batches_of_ids()
    singles = [
        {name: tensor[index : index + 1] for name, tensor in batch.items()}
        for batch in batches
        for index in range(3)
    ]
    together = salience(model, batches, "fisher", targets="linear", steps=2)
    apart = salience(model, singles, "fisher", targets="linear", steps=6)
    assert not together.notes
    for name, scores in together.scores.items():
        torch.testing.assert_close(scores, apart.scores[name], rtol=1e-3, atol=1e-9)


def test_what_shares_a_pass_with_fisher_is_the_same() -> None:
    model, batches = made("llama"), batches_of_ids()
    alone = salience(model, batches, "snip", targets="linear", steps=2)
    shared = salience(model, batches, ["fisher", "snip"], targets="linear", steps=2)["snip"]
    for name, scores in alone.scores.items():
        torch.testing.assert_close(scores, shared.scores[name], rtol=1e-3, atol=1e-8)


def test_a_head_that_is_named_shares_the_pass_too() -> None:
    model, batches = made("llama", tied=False), batches_of_ids()
    singles = [
        {name: tensor[index : index + 1] for name, tensor in batch.items()}
        for batch in batches
        for index in range(3)
    ]
    together = salience(model, batches, "fisher", targets=["lm_head"], steps=2)
    apart = salience(model, singles, "fisher", targets=["lm_head"], steps=6)
    assert not together.notes
    torch.testing.assert_close(
        together.scores["lm_head.weight"], apart.scores["lm_head.weight"], rtol=1e-3, atol=1e-9
    )


def test_a_classifier() -> None:
    config = made("bert").config
    config.num_labels = 3
    model = models.initialized(lambda: AutoModelForSequenceClassification.from_config(config), 1)
    batch = {"input_ids": batches_of_ids()[0]["input_ids"], "labels": torch.tensor([0, 1, 2])}
    found = salience(model, [batch], "all", steps=1)
    assert not found["fisher"].notes
    assert not any(bool(name.startswith("classifier")) for name in found["snip"].scores)
    named = salience(model, [batch], "snip", targets=["classifier"], steps=1)
    assert [*named.scores] == ["classifier.weight"]


def test_a_mixture_of_experts() -> None:
    model = made("mixtral")
    kinds = model.config.to_dict(), model.get_experts_implementation()
    found = salience(model, batches_of_ids(), "all", steps=2)
    assert all(bool(scores.any()) for each in found.values() for scores in each.scores.values())
    assert (model.config.to_dict(), model.get_experts_implementation()) == kinds


def test_half_precision_is_summed_in_fp32() -> None:
    model = made("llama").to(torch.bfloat16)
    found = salience(model, batches_of_ids(), "all", steps=2)
    for measured in found.values():
        assert {scores.dtype for scores in measured.scores.values()} == {torch.float32}


def test_a_loss_of_ones_own() -> None:
    model, batches = two_layers(), batches_for()

    def own(network: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = network(**batch).loss
        return loss

    found = salience(model, batches, "fisher", targets=["first"], loss=own)
    assert found.notes == (
        "only 5 of 64 calibration batches were given",
        "a pass for every example of a batch",
    )
    wanted = Twin(model, batches).scores("fisher", "inside")["first.weight"]
    torch.testing.assert_close(found.scores["first.weight"].double(), wanted, rtol=1e-4, atol=1e-8)


def test_a_layer_that_runs_twice_has_a_pass_for_each_example() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, vectors: torch.Tensor, labels: torch.Tensor) -> Any:
            logits = self.layer(self.layer(vectors).tanh())
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            return SimpleNamespace(loss=loss, logits=logits)

    model, batch = Twice(), batches_for(1)[0]
    squares = torch.zeros(3, 3)
    for index in range(3):
        loss = model(**{name: tensor[index : index + 1] for name, tensor in batch.items()}).loss
        squares += torch.autograd.grad(loss, model.layer.weight)[0] ** 2 / 3
    found = salience(model, [batch], "fisher", targets=["layer"], steps=1)
    assert found.notes == ("a pass for every example of a batch",)
    torch.testing.assert_close(found.scores["layer.weight"], squares)


def test_no_more_batches_are_read_than_are_used() -> None:
    read = []

    def endless() -> Iterator[dict[str, Any]]:
        for index in itertools.count():
            read.append(index)
            yield batches_of_ids(1)[0]

    found = salience(made("llama"), endless(), "gradient", steps=3)
    assert (found.steps, found.examples, read) == (3, 9, [0, 1, 2])


# --- as before ------------------------------------------------------------------------------------


def everything_of(model: Any) -> dict[str, Any]:
    """What must be afterwards as before."""
    return {
        "bits": bits_of(model),
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "grads": {
            name: None if each.grad is None else (id(each.grad), each.grad.clone())
            for name, each in model.named_parameters()
        },
        "takes": {name: each.requires_grad for name, each in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": [
            (len(module._forward_hooks), len(module._backward_hooks)) for module in model.modules()
        ],
        "config": copy.deepcopy(model.config.to_dict()),
        "attention": model.config._attn_implementation,
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return bool(one == other)


def prepared(family: str) -> Any:
    """A model in the middle of a training: gradients, some weights frozen, in training mode."""
    model = made(family).train()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    for parameter in list(model.parameters())[1:4]:
        parameter.grad = torch.ones_like(parameter)
    model.get_submodule(choose_targets(model)[0].name).eval()
    return model


@pytest.mark.parametrize("expectation", ["inside", "outside"])
@pytest.mark.parametrize("hessian", ["exact", "difference"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_the_model_is_as_before(family: str, hessian: Any, expectation: Any) -> None:
    model = prepared(family)
    before = everything_of(model)
    with_data = [name for name, facts in SALIENCE_METRICS.items() if not facts.data_free]
    salience(model, batches_of_ids(), with_data, steps=2, hessian=hessian, expectation=expectation)
    salience(model, [], "synflow")
    assert same(everything_of(model), before)


@pytest.mark.parametrize("fails_at", range(1, 8))
def test_the_model_is_as_before_after_an_exception(fails_at: int) -> None:
    model = prepared("llama")
    before, calls = everything_of(model), itertools.count(1)

    def fail(module: nn.Module, args: Any, output: Any) -> None:
        torch.rand(1), random.random(), np.random.rand()
        if next(calls) == fails_at:
            raise KeyboardInterrupt

    handle = model.model.norm.register_forward_hook(fail)
    before = everything_of(model)
    with pytest.raises(KeyboardInterrupt):
        salience(
            model, batches_of_ids(), ["synflow", "fisher", "grasp"], steps=2, hessian="difference"
        )
    assert same(everything_of(model), before)
    handle.remove()


# --- targets --------------------------------------------------------------------------------------

ATTENTION = {
    "llama": 8,
    "gpt2": 4,
    "opt": 8,
    "bert": 8,
    "roberta": 8,
    "qwen2": 8,
    "gemma2": 8,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_found_by_their_names(family: str) -> None:
    model = made(family, tied=False)
    attention = choose_targets(model)
    linear = choose_targets(model, "linear")
    assert len(attention) == ATTENTION[family]
    assert {layer.name for layer in attention} < {layer.name for layer in linear}
    assert all(layer.block is not None for layer in linear)


def test_names_match_as_peft_matches_them() -> None:
    model = made("llama", tied=False)
    found = [layer.name for layer in choose_targets(model, ["q_proj", "lm_head"])]
    assert found == [
        *(f"model.layers.{block}.self_attn.q_proj" for block in range(2)),
        "lm_head",
    ]
    assert [layer.name for layer in choose_targets(model, "1.self_attn.q_proj")] == [found[1]]


def meta(model: Any) -> Any:
    return AutoModelForCausalLM.from_config(model.config).to("meta")


def quantized(model: Any) -> Any:
    model.is_quantized = True
    return model


def integers(model: Any) -> Any:
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    return model


def adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


def not_finite(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = torch.inf
    return model


def unchanged(model: Any) -> Any:
    return model


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no match": (unchanged, {"targets": ["w_proj"]}, r"targets w_proj(.|\n)*k_proj"),
    "one of two": (unchanged, {"targets": ["q_proj", "norm"]}, "targets norm: the names match no"),
    "no targets": (unchanged, {"targets": []}, "give attention, linear, or names"),
    "tied head": (unchanged, {"targets": ["lm_head"]}, r"lm_head: its weight is tied"),
    "meta": (meta, {}, "on the meta device"),
    "quantized": (quantized, {}, "quantized: only floating-point weights can be adapted"),
    "integers": (integers, {}, "q_proj: Linear of int8"),
    "adapted": (adapted, {}, "has a PEFT adapter"),
    "wrapped": (torch.compile, {}, "wrapped or compiled already: adapt it before"),
    "not finite": (not_finite, {"metric": "magnitude"}, r"layers.1.self_attn.v_proj.weight"),
    "metric": (unchanged, {"metric": "hessian"}, "no salience metric 'hessian': choose from"),
    "no metric": (unchanged, {"metric": []}, "no salience metric given"),
    "expectation": (unchanged, {"expectation": "between"}, "choose inside or outside"),
    "data-free outside": (
        unchanged,
        {"metric": ["snip", "magnitude"], "expectation": "outside"},
        "magnitude sees no data",
    ),
    "sign": (unchanged, {"sign": 0}, "sign=0: choose 1 or -1"),
    "hessian": (unchanged, {"hessian": "full"}, "hessian='full': choose exact or difference"),
    "steps": (unchanged, {"steps": 0}, "steps=0"),
    "no batches": (unchanged, {"batches": []}, "there is no calibration batch"),
    "no mapping": (unchanged, {"batches": [torch.ones(2)]}, "batch is a Tensor: give mappings"),
    "no labels": (
        unchanged,
        {"batches": [{"input_ids": torch.tensor([[5, 6]])}]},
        "returns no loss for a batch of input_ids: add labels",
    ),
    "unknown input": (unchanged, {"batches": [{"words": torch.ones(2)}]}, "the model says"),
    "no gradient": (
        unchanged,
        {"loss": lambda model, batch: torch.tensor(1.0)},
        "has no gradient: it depends on none of the 8 weights",
    ),
    "many losses": (
        unchanged,
        {"loss": lambda model, batch: model(**batch).logits},
        r"the loss has the shape \(3, 10, ",
    ),
    "unreached": (
        unchanged,
        {
            "loss": lambda model, batch: model.model.layers[0](
                torch.ones(1, 1, 16), position_embeddings=(torch.ones(1, 1, 8),) * 2
            ).sum()
        },
        r"gives these weights a gradient(.|\n)*layers.1",
    ),
    "difference in bf16": (
        lambda model: model.to(torch.bfloat16),
        {"metric": "grasp", "hessian": "difference"},
        "needs weights of fp32 or fp64, and .*q_proj.weight is bfloat16",
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize(("change", "given", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_measured_is_refused(
    change: Any, given: dict[str, Any], message: str
) -> None:
    model = change(made("llama"))
    full: dict[str, Any] = {"batches": batches_of_ids(), "metric": "gradient", "steps": 2, **given}
    with pytest.raises(DeltaLensError, match=message):
        salience(model, full.pop("batches"), full.pop("metric"), **full)
