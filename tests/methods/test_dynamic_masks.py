"""Masks that are renewed during the training (SPEFT, Algorithm 1)."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltalens import DeltaLensError, SparseAdapter, SparseTuning
from deltalens.methods.salience import salience
from tests.support.sparse_models import Net, same_model

SEED = 5


def batch(number: int) -> Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(number))


def loss(model: nn.Module, inputs: Any) -> Tensor:
    return model(inputs["input"]).square().mean()


def batches(number: int) -> Iterator[dict[str, Tensor]]:
    """Fresh ones for each mask."""
    for each in range(3):
        yield {"input": batch(1000 * (number + 1) + each)}


def net() -> Net:
    torch.manual_seed(SEED)
    return Net()


def dynamic(model: nn.Module, every: int | None, **settings: Any) -> SparseTuning:
    return SparseTuning(
        model,
        **{
            "density": 0.1,
            "metric": "gradient",
            "batches": batches,
            "loss": loss,
            "targets": ["first", "second"],
            "refresh_every": every,
            **settings,
        },
    )


class Training:
    """A model in training, by AdamW."""

    def __init__(self, every: int | None, **settings: Any) -> None:
        self.model = net()
        self.base = copy.deepcopy(self.model)
        self.tuning = dynamic(self.model, every, **settings)
        self.optimizer = torch.optim.AdamW(self.tuning.parameters(), lr=1e-2, weight_decay=0.0)

    def run(self, first: int, last: int) -> list[tuple[int, ...]]:
        """Steps `first` to `last`, counted from 1; the optimizer's step counts during each."""
        counts = []
        for step in range(first, last + 1):
            loss(self.model, {"input": batch(step)}).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            states = self.optimizer.state.values()
            counts.append(tuple(int(state["step"]) for state in states))
        return counts


def test_masks_are_renewed_before_every_multiple_of_the_interval() -> None:
    training = Training(3)
    seen = [training.tuning.indices()]
    counts: list[tuple[int, ...]] = []
    for step in range(1, 8):
        counts += training.run(step, step)
        seen.append(training.tuning.indices())
    changed = [
        step
        for step, (before, after) in enumerate(itertools.pairwise(seen), 1)
        if any(not torch.equal(before[name], after[name]) for name in before)
    ]
    assert changed == [3, 6]
    # The optimizer's state begins anew with each mask.
    assert [set(each) for each in counts] == [{1}, {2}, {1}, {2}, {3}, {1}, {2}]


def test_a_new_mask_ranks_the_current_weights_on_fresh_batches() -> None:
    training = Training(4)
    training.run(1, 3)
    current = copy.deepcopy(training.base)
    for name in ("first", "second"):
        weight = training.model.get_submodule(name).weight
        current.get_submodule(name).weight.data.copy_(weight)
    training.run(4, 4)
    found = salience(
        current, batches(1), "gradient", targets=["first", "second"], loss=loss, steps=64
    )
    expected = found.indices(0.1)
    for name, flat in training.tuning.indices().items():
        assert torch.equal(flat, expected[name])


def test_a_static_mask_is_never_renewed() -> None:
    training = Training(None)
    before = training.tuning.indices()
    training.run(1, 9)
    after = training.tuning.indices()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_outside_the_union_of_masks_every_weight_keeps_its_bits(scope: str) -> None:
    training = Training(2, scope=scope)
    union = {
        name: torch.zeros(training.base.get_parameter(name).shape, dtype=torch.bool)
        for name in training.tuning.indices()
    }
    for step in range(1, 10):
        training.run(step, step)
        for name, flat in training.tuning.indices().items():
            union[name].view(-1)[flat] = True
    trained = copy.deepcopy(training.tuning.merge())
    for name, inside in union.items():
        before, after = training.base.get_parameter(name), trained.get_parameter(name)
        assert torch.equal(before[~inside], after[~inside])
        assert int(inside.sum()) > training.tuning.budget.trained // 4
        changed = (before != after).sum()
        assert int(changed) > int(0.8 * inside.sum())
    assert same_model(training.tuning.unmerge(), training.base)


@pytest.mark.parametrize("killed_after", range(1, 9))
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(killed_after: int) -> None:
    whole = Training(3)
    whole.run(1, 9)
    first = Training(3)
    first.run(1, killed_after)
    model, optimizer = (copy.deepcopy(x.state_dict()) for x in (first.model, first.optimizer))
    again = Training(3)
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    assert again.tuning.step == killed_after
    again.run(killed_after + 1, 9)
    for (name, own), other in zip(
        again.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other), name
    assert same_model(again.tuning.unmerge(), whole.base)


def test_an_evaluation_before_a_renewal_sees_the_old_mask() -> None:
    training = Training(3)
    training.run(1, 2)
    before = training.tuning.indices()
    training.model.eval()
    with torch.no_grad():
        training.model(batch(0))
    training.model.train()
    assert all(torch.equal(f, training.tuning.indices()[n]) for n, f in before.items())


@pytest.mark.parametrize("form", ["deltalens", "shira"])
def test_a_dynamic_adapter_gives_the_same_outputs_on_the_base(form: str, tmp_path: Any) -> None:
    training = Training(2)
    training.run(1, 7)
    path = tmp_path / "adapter"
    training.tuning.save(path, format=form)
    other = copy.deepcopy(training.base)
    loaded = SparseTuning.load(path, other)
    third = copy.deepcopy(training.base)
    remove = SparseAdapter.read(path, third).apply(third)
    with torch.no_grad():
        ours, theirs = training.model(batch(0)), other(batch(0))
        assert torch.equal(third(batch(0)), theirs)
    remove()
    assert same_model(third, training.base)
    if form == "deltalens":
        assert torch.equal(ours, theirs)
    else:  # A difference may round.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert same_model(loaded.unmerge(), training.base)


def test_a_renewal_by_hand() -> None:
    training = Training(None)
    training.run(1, 4)
    before = training.tuning.indices()
    training.tuning.refresh()
    assert any(not torch.equal(f, training.tuning.indices()[n]) for n, f in before.items())
    assert training.run(5, 5) == [(1, 1)]


def renewals(training: Training) -> int:
    """Masks made after the first, as a checkpoint has them."""
    return int(training.model.state_dict()["first.sparse_clock"][1])


def test_a_mask_may_change_size_while_the_loss_of_before_is_alive() -> None:
    training = Training(2)
    for step in range(1, 7):
        value = loss(training.model, {"input": batch(step)})  # alive until the next one
        value.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
    assert renewals(training) == 3


def test_a_model_that_trains_in_evaluation_mode_gets_new_masks() -> None:
    training = Training(2)
    training.model.eval()  # as from_pretrained returns it
    training.run(1, 4)
    assert renewals(training) == 2


def test_a_checkpoint_between_a_renewal_and_its_step_resumes_bit_for_bit() -> None:
    whole, first, again = (Training(None) for _ in range(3))
    for training in (whole, first):
        training.run(1, 2)
        training.tuning.refresh()
    model, optimizer = (copy.deepcopy(x.state_dict()) for x in (first.model, first.optimizer))
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    for training in (whole, again):
        training.run(3, 4)
    assert same_model(again.model, whole.model)


@pytest.mark.parametrize("lbfgs", [False, True])
def test_a_step_that_computes_its_own_loss_begins_with_the_new_mask(lbfgs: bool) -> None:
    training, other = Training(2), Training(2)
    optimizer: Any = training.optimizer
    if lbfgs:
        optimizer = torch.optim.LBFGS(training.tuning.parameters(), lr=1e-2)
    for step in range(1, 6):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            value = loss(training.model, {"input": batch(step)})
            value.backward()
            return value

        optimizer.step(closure)
    assert training.tuning.step == 5
    assert renewals(training) == 2
    if not lbfgs:
        other.run(1, 5)
        assert same_model(training.model, other.model)


def test_a_renewal_counts_steps_of_the_training_not_of_each_optimizer() -> None:
    training = Training(3)
    optimizers = [torch.optim.AdamW([each], lr=1e-2) for each in training.tuning.parameters()]
    for step in range(1, 7):
        loss(training.model, {"input": batch(step)}).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert training.tuning.step == step
    assert renewals(training) == 2


def test_a_renewal_is_not_missed_where_the_model_is_not_called_as_a_whole() -> None:
    training = Training(2)
    for step in range(1, 5):
        hidden = torch.tanh(training.model.first(batch(step)))
        training.model.second(hidden).square().mean().backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
    assert renewals(training) == 2


def test_micro_batches_of_a_step_share_its_new_mask() -> None:
    training, other = Training(2), Training(2)
    for step in range(1, 5):
        for half in batch(step).split(4):
            (loss(training.model, {"input": half}) / 2).backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
    other.run(1, 4)
    for own, single in zip(training.tuning.parameters(), other.tuning.parameters(), strict=True):
        torch.testing.assert_close(own, single, rtol=1e-4, atol=1e-6)
    assert renewals(training) == 2


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_an_interrupted_renewal_leaves_the_training_as_it_was(fault: Any) -> None:
    pending = [fault]

    def interrupted(number: int) -> Iterator[dict[str, Tensor]]:
        for count, each in enumerate(batches(number)):
            if number and count and pending:
                raise pending.pop()
            yield each

    training, other = Training(2, batches=interrupted), Training(2)
    training.run(1, 1)
    state = copy.deepcopy(training.model.state_dict())
    modes = [module.training for module in training.model.modules()]
    with pytest.raises(fault):
        training.run(2, 2)
    after = training.model.state_dict()
    assert all(torch.equal(each, after[name]) for name, each in state.items())
    assert [module.training for module in training.model.modules()] == modes
    training.run(2, 5)
    other.run(1, 5)
    assert same_model(training.model, other.model)


def test_a_copy_of_a_model_with_dynamic_masks_trains_by_itself() -> None:
    training = Training(2)
    training.run(1, 1)
    other = copy.deepcopy(training.model)
    optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2, 6):
        loss(other, {"input": batch(step)}).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert renewals(training) == 0
    assert training.tuning.step == 1
    training.run(2, 3)
    assert renewals(training) == 1


@pytest.mark.parametrize("metric", ["magnitude", "random"])
def test_an_adapter_is_loaded_where_a_layer_has_no_entries_now(metric: str, tmp_path: Any) -> None:
    model = net()
    with torch.no_grad():
        model.first.weight.mul_(100)
    base = copy.deepcopy(model)
    tuning = dynamic(model, 2, metric=metric, batches=None, density=0.02)
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    for step in range(1, 6):
        loss(model, {"input": batch(step)}).backward()
        optimizer.step()
        optimizer.zero_grad()
    if metric == "magnitude":
        assert not len(tuning.indices()["second.weight"])
    tuning.save(tmp_path / "adapter.safetensors")
    other = copy.deepcopy(base)
    loaded = SparseTuning.load(tmp_path / "adapter.safetensors", other)
    assert torch.equal(model(batch(0)), other(batch(0)))
    assert same_model(loaded.unmerge(), base)


def test_all_ties_are_kept_and_counted_with_each_mask() -> None:
    model = net()
    with torch.no_grad():
        model.first.weight.fill_(1.0)
    tuning = dynamic(model, 2, metric="magnitude", batches=None, targets=["first"], ties="keep")
    assert tuning.budget.trained == sum(map(len, tuning.indices().values())) == 240
    with torch.no_grad():
        tuning.parameters()[0].copy_(torch.arange(240.0))
    tuning.refresh()
    assert tuning.budget.trained == sum(map(len, tuning.indices().values())) == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 2, "ties": "all"}, "ties='all': choose one of hash, keep"),
        ({"every": 0}, "refresh_every=0: a number of steps"),
        ({"every": 2, "batches": []}, "each mask needs fresh batches: give a function"),
        ({"every": 2, "masks": {"first": torch.tensor([1])}}, "masks that are given stay"),
    ],
)
def test_an_impossible_renewal_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeltaLensError, match=message):
        dynamic(net(), **settings)
