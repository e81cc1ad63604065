"""MaskTuning in plain loops: forward, selection and straight-through gradient are the twin's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import MaskTuning
from deltalens.methods.mask_scores import Rule
from tests.support.masked_training import assert_same_bits
from tests.support.mft_models import (
    FAMILIES,
    RULES,
    batches,
    bits_of,
    llama,
    loss_of,
    named_scores,
    plain_bits,
    rule_of,
    tie,
)
from tests.support.oracles import mft
from tests.support.oracles.order import count_for

pytestmark = pytest.mark.oracle


def twin_rule(given: dict[str, Any], ratio: float | str, seed: int) -> dict[str, Any]:
    return {**given, "ratio": ratio, "seed": seed}


@pytest.mark.parametrize("grid", [False, True], ids=["normal", "ties"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_steps_are_the_twins_bit_for_bit(family: str, rule: dict[str, Any], grid: bool) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family](True).double().eval()
    torch.manual_seed(0)
    plain = FAMILIES[family](True).double().eval()
    MaskTuning(model, seed=5, **rule_of(rule, "0.3"))
    scores, data = named_scores(model), batches()
    generator = torch.Generator().manual_seed(1)
    for parameter in scores.values():
        assert parameter.dtype == torch.float64
        if grid:
            tie(parameter, generator)
    optimizer = torch.optim.SGD(scores.values(), lr=0.5)
    for _ in range(4):
        ids = next(data)
        before = {name: s.detach().clone() for name, s in scores.items()}
        loss = loss_of(model, ids)
        optimizer.zero_grad()
        loss.backward()
        wanted, gradients = mft.gradients(plain, before, loss_of, ids, **twin_rule(rule, "0.3", 5))
        assert torch.equal(loss.detach(), wanted)
        for name, parameter in scores.items():
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradients[name]), name
            assert (parameter.grad != 0).float().mean() > 0.5
        optimizer.step()
        if grid:
            for parameter in scores.values():
                tie(parameter, generator)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_masks_are_the_twins(rule: dict[str, Any]) -> None:
    model = llama()
    tuning = MaskTuning(model, seed=2, **rule_of(rule, 0.35))
    generator = torch.Generator().manual_seed(0)
    for parameter in named_scores(model).values():
        tie(parameter, generator)
    masks = tuning.masks()
    assert set(masks) == set(tuning.layers)
    for name, scores in named_scores(model).items():
        wanted = mft.mask_of(scores.detach(), name, **twin_rule(rule, 0.35, 2))
        assert torch.equal(masks[name.removesuffix(".weight")], wanted), name
        share = tuning.mask_ratio_by_layer()[name.removesuffix(".weight")]
        assert share == int((~wanted).sum()) / wanted.numel()


def test_a_step_raises_what_lowers_the_loss_when_kept() -> None:
    """To first order, keeping weight w rather than not changes the loss by w * dL/dw'."""
    model = llama(torch.float64)
    MaskTuning(model, mask_ratio=0.2)
    scores = named_scores(model)
    weights = plain_bits(model)
    before = {name: s.detach().clone() for name, s in scores.items()}
    ids = next(batches())
    _, gradients = mft.gradients(llama(torch.float64), before, loss_of, ids, ratio="0.2")
    loss_of(model, ids).backward()
    torch.optim.SGD(scores.values(), lr=1e-6).step()
    for name, after in scores.items():
        keeping = gradients[name] * before[name].sign()  # w * dL/dw'
        assert torch.equal(after.abs() > before[name].abs(), keeping < 0), name
        assert torch.equal(after.abs() < before[name].abs(), keeping > 0), name
        assert (before[name] > 0).any(), name
        assert (before[name] < 0).any(), name
        assert weights[name].shape == after.shape


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("build", FAMILIES.values(), ids=FAMILIES)
def test_twenty_steps_freeze_every_weight_and_keep_the_exact_share(
    build: Callable[[bool], nn.Module], rule: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = build(True)
    start = bits_of(model)
    tuning = MaskTuning(model, **rule_of(rule, {"attention": 0.25, "mlp": "0.1"}))
    begun = {name: s.detach().clone() for name, s in named_scores(model).items()}
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2, weight_decay=0.1)
    data, losses = batches(), []
    for _ in range(20):
        losses.append(loss_of(model, ids := next(data)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_bits(plain_bits(model), start)
    for name, scores in named_scores(model).items():
        assert (scores != begun[name]).all(), name
    if "threshold" not in rule:
        for name, mask in tuning.masks().items():
            ratio = "0.25" if "att" in name else "0.1"
            assert int((~mask).sum()) == count_for(ratio, mask.numel()), name
    assert min(losses[10:]) < losses[0]
    # Merged, it computes the same, and is an ordinary model with exact zeros.
    model.eval()
    masked, masks = model(ids).logits, tuning.masks()
    assert tuning.merge() is model
    assert torch.equal(model(ids).logits, masked)
    assert list(model.state_dict()) == list(build(True).state_dict())
    for name, value in bits_of(model).items():
        mask = masks.get(name.removesuffix(".weight"), torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, torch.where(mask, start[name], 0)), name


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the weights whose masks are selected from now on."""
    selected: list[str] = []
    select = Rule.select

    def counting(rule: Rule, *args: Any) -> Any:
        selected.append(rule.name)
        return select(rule, *args)

    monkeypatch.setattr(Rule, "select", counting)
    return selected


def test_eight_micro_batches_select_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, selected = llama(), batches(), counted(monkeypatch)
    tuning = MaskTuning(model)
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    for step in range(3):
        for _ in range(8):
            loss_of(model, next(data)).backward()
        assert len(selected) == (step + 1) * len(tuning.layers)
        optimizer.step()
        optimizer.zero_grad()
    tuning.masks()
    tuning.mask_ratio_by_layer()
    assert len(selected) == 4 * len(tuning.layers)
    assert len(set(selected)) == len(tuning.layers)


class ThroughData(torch.optim.Optimizer):
    """Writes where autograd's version counter does not look."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.neg_().add_(0.01)


def test_an_optimizer_that_leaves_no_trace_is_noticed() -> None:
    model = llama()
    tuning = MaskTuning(model, rank_by="value")
    optimizer = ThroughData(tuning.parameters())
    before = tuning.masks()
    loss_of(model, next(batches())).backward()
    optimizer.step()
    for name, mask in tuning.masks().items():
        assert not torch.equal(mask, before[name]), name


@pytest.mark.parametrize(
    ("make", "rate"),
    [(torch.optim.SGD, 10.0), (torch.optim.RMSprop, 1e-2), (torch.optim.LBFGS, 1.0)],
)
def test_any_optimizer(make: Any, rate: float) -> None:
    model, ids = llama(), next(batches())
    tuning = MaskTuning(model)
    optimizer = make(tuning.parameters(), lr=rate)
    before = tuning.masks()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, ids)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    after = tuning.masks()
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_accumulated_gradients_are_their_sum() -> None:
    model, one = llama(torch.float64), llama(torch.float64)
    MaskTuning(model)
    MaskTuning(one)
    data = batches()
    some = [next(data) for _ in range(3)]
    alone = []
    for ids in some:
        loss_of(model, ids).backward()
        one.zero_grad()
        loss_of(one, ids).backward()
        alone.append({name: s.grad.clone() for name, s in named_scores(one).items()})  # type: ignore[union-attr]
    for name, scores in named_scores(model).items():
        wanted = alone[0][name].clone()
        for other in alone[1:]:
            wanted += other[name]
        assert torch.equal(scores.grad, wanted), name  # type: ignore[arg-type]


def test_bf16_weights_with_fp32_scores() -> None:
    model = llama(torch.bfloat16)
    tuning = MaskTuning(model, mask_ratio=0.25)
    scores = named_scores(model)
    weights = plain_bits(model)
    ids = next(batches())
    loss_of(model, ids).backward()
    # The bf16 gradient of the masked weight is widened once, then multiplied in fp32.
    replaced = {
        name: mft.masked(
            weights[name], mft.mask_of(s.detach(), name, ratio="0.25")
        ).requires_grad_()
        for name, s in scores.items()
    }
    loss = loss_of(
        lambda ids: torch.func.functional_call(llama(torch.bfloat16), replaced, (ids,)),
        ids,  # type: ignore[arg-type]
    )
    found = torch.autograd.grad(loss, list(replaced.values()))
    for (name, parameter), gradient in zip(scores.items(), found, strict=True):
        assert parameter.dtype == torch.float32
        wanted = gradient.float() * weights[name].float() * parameter.detach().sign()
        assert torch.equal(parameter.grad, wanted), name  # type: ignore[arg-type]
    assert tuning.merge().dtype == torch.bfloat16


def test_scores_depend_on_seed_and_name_alone() -> None:
    one, other, third = llama(), llama(layers=3), llama()
    MaskTuning(one, blocks="all")
    MaskTuning(other, blocks="1", modules=["mlp"])
    MaskTuning(third, seed=1)
    for name, scores in named_scores(other).items():
        assert torch.equal(scores, named_scores(one)[name]), name
        assert not torch.equal(scores, named_scores(third)[name]), name
    whole = torch.cat([s.flatten() for s in named_scores(one).values()])
    assert whole.unique().numel() > 0.99 * whole.numel()
    assert whole.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(whole.mean().item()) < 0.002


def test_detached_the_model_is_as_it_was() -> None:
    model = llama()
    model.lm_head.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    own = dict(model.named_parameters())
    tuning = MaskTuning(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if n.endswith("scores")
    }
    loss_of(model, next(batches())).backward()
    tuning.detach()
    assert_same_bits(model.state_dict(), state)
    assert list(model.state_dict()) == list(state)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert all(own[name] is p for name, p in model.named_parameters())


@pytest.mark.parametrize("make", [torch.optim.SGD, ThroughData])
def test_a_graph_over_masks_of_before_is_refused(make: Any) -> None:
    model, data = llama(), batches()
    optimizer = make(MaskTuning(model).parameters())
    late = loss_of(model, next(data))
    loss_of(model, next(data)).backward()
    optimizer.step()
    loss_of(model, next(data))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        late.backward()


def test_masks_are_made_outside_of_inference_mode_too() -> None:
    model, ids = llama(), next(batches())
    MaskTuning(model)
    with torch.inference_mode():
        model(ids)
    loss_of(model, ids).backward()
    assert all(s.grad is not None for s in named_scores(model).values())
