"""Training chosen entries of a model's weights, and nothing else."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deltalens import DeltaLensError, SparseAdapter, SparseTuning
from tests.support.models import tiny
from tests.support.sparse_models import DenseTwin, Net, random_masks, same_model, values_of

BOTH = ["first", "second"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (3, 5, 12), (2, 3, 5, 12)])
@pytest.mark.parametrize("density", [0.05, 0.6])
def test_the_values_gradient_is_the_dense_one_at_their_entries(
    shape: tuple[int, ...], density: float
) -> None:
    net = Net()
    masks = random_masks(net, BOTH, density)
    twin, tuning = DenseTwin(net, masks), SparseTuning(net, masks=masks)
    for _ in range(3):  # accumulated
        inputs = torch.randn(shape)
        net(inputs).square().sum().backward()
        twin.model(inputs).square().sum().backward()
    for name, gradient in twin.gradients().items():
        own = values_of(tuning)[name].grad
        assert own is not None
        assert float((own - gradient).norm() / gradient.norm()) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_inputs_that_few_entries_read_no_more_is_kept(family: str) -> None:
    model = tiny(family, vocab_size=31).eval()
    names = [n for n, _ in model.named_modules() if n.endswith(("_proj", "c_proj", "c_attn"))]
    masks = random_masks(model, names, 0.5)
    for mask in masks.values():  # a corner of each weight
        mask[mask.shape[0] // 4 :] = False
        mask[:, mask.shape[1] // 4 :] = False
    twin, tuning = DenseTwin(model, masks), SparseTuning(model, masks=masks)
    ids, kept = torch.randint(0, 31, (2, 9)), []

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved.shape)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    twin.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, gradient in twin.gradients().items():
        torch.testing.assert_close(values_of(tuning)[name].grad, gradient, rtol=1e-5, atol=1e-7)
        read = masks[name].any(1 if family == "gpt2" else 0).sum()
        assert (18, int(read)) in kept


def test_the_inputs_gradient_is_that_of_the_plain_layer() -> None:
    net = Net()
    plain, inputs = copy.deepcopy(net), torch.randn(4, 12)
    SparseTuning(net, masks=random_masks(net, BOTH, 0.1))
    mine, other = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    net(mine).sum().backward()
    plain(other).sum().backward()
    assert torch.equal(mine.grad, other.grad)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_thirty_steps_equal_a_dense_run_whose_gradients_are_masked(optimizer: Any) -> None:
    net = Net()
    masks = random_masks(net, BOTH, 0.1)
    twin, tuning = DenseTwin(net, masks), SparseTuning(net, masks=masks)
    settings = {"lr": 1e-2, "weight_decay": 0.0}
    own = optimizer(tuning.parameters(), **settings)
    other = optimizer(twin.weights.values(), **settings)
    for _ in range(30):
        inputs = torch.randn(8, 12)
        for half in inputs.split(4):
            net(half).square().mean().backward()
            twin.model(half).square().mean().backward()
        twin.mask_gradients()
        own.step()
        other.step()
        own.zero_grad()
        other.zero_grad()
    for name, weight in twin.weights.items():
        torch.testing.assert_close(net.get_submodule(name).weight, weight, rtol=1e-5, atol=1e-5)


def test_only_the_values_train_and_the_optimizer_holds_no_more_than_they() -> None:
    net = Net()
    tuning = SparseTuning(net, masks=random_masks(net, BOTH, 0.1))
    trained = [p for p in net.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in tuning.parameters()}
    assert sum(p.numel() for p in trained) == tuning.budget.trained
    optimizer = torch.optim.AdamW(tuning.parameters())
    net(torch.randn(2, 12)).sum().backward()
    optimizer.step()
    state = [s for each in optimizer.state.values() for s in each.values() if s.dim()]
    assert sum(each.numel() for each in state) == 2 * tuning.budget.trained


def train(model: nn.Module, steps: int, seed: int = 0) -> Any:
    """Some steps on random inputs; the optimizer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(8, 12, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_outside_the_masks_every_weight_keeps_its_bits_and_unmerge_restores_the_rest(
    dtype: torch.dtype,
) -> None:
    net = Net(dtype)
    masks = random_masks(net, BOTH, 0.1)
    base = copy.deepcopy(net)
    tuning = SparseTuning(net, masks=masks)
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    for _ in range(5):
        net(torch.randn(8, 12, dtype=dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    merged = tuning.merge()
    assert merged is net
    for name, mask in masks.items():
        trained, before = net.get_submodule(name).weight, base.get_submodule(name).weight
        assert torch.equal(trained[~mask], before[~mask])
        assert bool((trained[mask] != before[mask]).any())
    assert [type(m) for m in net.modules()] == [type(m) for m in base.modules()]
    assert all(p.requires_grad for p in net.parameters())
    assert same_model(tuning.unmerge(), base)


def test_weights_in_bf16_carry_fp32_values_rounded_once() -> None:
    net = Net(torch.bfloat16)
    base = net.first.weight.detach().clone()
    tuning = SparseTuning(net, masks={"first": torch.tensor([7, 9])})
    (values,) = tuning.parameters()
    assert values.dtype == torch.float32
    with torch.no_grad():
        values.copy_(torch.tensor([1e-5, 0.1]))
    net(torch.randn(1, 12, dtype=torch.bfloat16))
    expected = (base.view(-1)[[7, 9]].float() + values.detach()).to(torch.bfloat16)
    assert torch.equal(net.first.weight.view(-1)[[7, 9]], expected)
    # Many small steps add up in the values, where each would be lost in bf16.
    with torch.no_grad():
        for _ in range(100):
            values += 1e-5
    net(torch.randn(1, 12, dtype=torch.bfloat16))
    expected = (base.view(-1)[[7, 9]].float() + values.detach()).to(torch.bfloat16)
    assert torch.equal(net.first.weight.view(-1)[[7, 9]], expected)


def test_a_value_that_is_written_past_autograd_reaches_the_weight_after_the_step() -> None:
    class Past(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(1.0)

    net = Net()
    before = net.first.weight.detach().clone()
    tuning = SparseTuning(net, masks={"first": torch.tensor([3])})
    Past(tuning.parameters(), lr=1.0).step()
    assert float(net.first.weight.view(-1)[3] - before.view(-1)[3]) == pytest.approx(1.0)


def test_a_state_dict_holds_the_trained_weights_and_all_that_is_needed_to_go_on() -> None:
    torch.manual_seed(3)
    net = Net()
    base = copy.deepcopy(net)
    masks = random_masks(net, BOTH, 0.1)
    SparseTuning(net, masks=masks)
    train(net, 4)
    state = copy.deepcopy(net.state_dict())
    plain = copy.deepcopy(base)
    plain.load_state_dict(state, strict=False)
    inputs = torch.randn(3, 12)
    assert torch.equal(plain(inputs), net(inputs))
    other = copy.deepcopy(base)
    resumed = SparseTuning(other, masks=random_masks(net, BOTH, 0.2, seed=9))
    other.load_state_dict(state)
    assert torch.equal(other(inputs), net(inputs))
    assert resumed.step == 4
    train(net, 3, seed=1)
    train(other, 3, seed=1)
    assert torch.equal(other.first.weight, net.first.weight)
    assert same_model(resumed.unmerge(), base)


def test_a_state_dict_of_another_base_is_refused() -> None:
    net = Net()
    SparseTuning(net, masks=random_masks(net, BOTH, 0.1))
    train(net, 2)
    other = Net()
    SparseTuning(other, masks=random_masks(other, BOTH, 0.1))
    with pytest.raises(DeltaLensError, match=r"first\.weight: .*trained from another base"):
        other.load_state_dict(net.state_dict())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_give_the_same_gradients(reentrant: bool) -> None:
    net = Net()
    tuning = SparseTuning(net, masks=random_masks(net, BOTH, 0.1))
    inputs = torch.randn(4, 12, requires_grad=True)
    net(inputs).sum().backward()
    expected = [p.grad.clone() for p in tuning.parameters()]
    for parameter in tuning.parameters():
        parameter.grad = None
    checkpoint(net, inputs, use_reentrant=reentrant).sum().backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(tuning.parameters(), expected, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_transformer_trains_with_gradient_checkpointing(reentrant: bool) -> None:
    model = tiny("llama", vocab_size=31)
    plain = copy.deepcopy(model)
    ids = torch.randint(0, 31, (2, 9))
    gradients = []
    for each, checkpointed in ((plain, False), (model, True)):
        names = [n for n, _ in each.named_modules() if n.endswith(("q_proj", "o_proj"))]
        tuning = SparseTuning(each, masks=random_masks(each, names, 0.2))
        each.train()
        if checkpointed:
            each.gradient_checkpointing_enable({"use_reentrant": reentrant})
        each(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in tuning.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_trains_fp32_weights() -> None:
    net = Net()
    tuning = SparseTuning(net, masks=random_masks(net, BOTH, 0.2))
    inputs = torch.randn(4, 12)
    net(inputs).square().mean().backward()
    exact = [p.grad.clone() for p in tuning.parameters()]
    for parameter in tuning.parameters():
        parameter.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(inputs).square().mean()
    loss.backward()
    for parameter, wanted in zip(tuning.parameters(), exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < 0.03


def test_a_new_head_trains_whole_and_is_counted_apart() -> None:
    net = Net()
    base = copy.deepcopy(net)
    tuning = SparseTuning(net, masks=random_masks(net, ["first"], 0.1), whole=["second"])
    assert net.second.weight.requires_grad
    assert net.second.bias.requires_grad
    assert tuning.trained_whole == 20 * 7 + 7
    assert tuning.budget.trained == sum(p.numel() for p in tuning.parameters())
    before = net.second.weight.detach().clone()
    train(net, 1)
    assert bool((net.second.weight != before).all())
    assert same_model(tuning.unmerge(), base)


def test_a_bias_that_is_named_trains_beside_the_entries_of_its_layer() -> None:
    net = Net()
    plain = copy.deepcopy(net)
    SparseTuning(net, masks=random_masks(net, ["first"], 0.1), whole=["first.bias"])
    for inputs in (torch.randn(3, 4, 12), torch.randn(12)):
        net(inputs).square().sum().backward()
        plain(inputs).square().sum().backward()
    torch.testing.assert_close(net.first.bias.grad, plain.first.bias.grad)


def test_an_adapter_holds_the_head_that_trained_whole(tmp_path: Any) -> None:
    net = Net()
    base = copy.deepcopy(net)
    tuning = SparseTuning(net, masks=random_masks(net, ["first"], 0.1), whole=["second"])
    train(net, 2)
    with pytest.raises(DeltaLensError, match=r"(?s)has no place for what trained whole.*second\.b"):
        tuning.save(tmp_path / "shira", format="shira")
    tuning.save(tmp_path / "adapter.safetensors")
    inputs = torch.randn(3, 12)
    applied, loaded = copy.deepcopy(base), copy.deepcopy(base)
    remove = SparseAdapter.read(tmp_path / "adapter.safetensors", applied).apply(applied)
    again = SparseTuning.load(tmp_path / "adapter.safetensors", loaded)
    assert torch.equal(applied(inputs), net(inputs))
    assert torch.equal(loaded(inputs), net(inputs))
    assert again.trained_whole == tuning.trained_whole
    assert loaded.second.bias.requires_grad
    remove()
    assert same_model(applied, base)
    assert same_model(again.unmerge(), base)
    odd = nn.ModuleDict({"first": nn.Linear(12, 20), "second": nn.Linear(20, 3)})
    odd["first"].load_state_dict(base.first.state_dict())
    with pytest.raises(
        DeltaLensError, match=r"second\.weight: .*no such parameter of shape \[7, 20"
    ):
        SparseAdapter.read(tmp_path / "adapter.safetensors", odd)


def test_after_the_end_nothing_more_is_trained() -> None:
    net = Net()
    tuning = SparseTuning(net, masks=random_masks(net, BOTH, 0.1))
    tuning.merge()
    assert "merged or unmerged" in repr(tuning)
    for call in (tuning.parameters, tuning.merge, tuning.indices, tuning.adapter, tuning.refresh):
        with pytest.raises(DeltaLensError, match="the tuning has ended"):
            call()


def test_a_deep_copy_trains_by_itself() -> None:
    net = Net()
    tuning = SparseTuning(net, masks=random_masks(net, BOTH, 0.1))
    other = copy.deepcopy(net)
    train(other, 2)
    inputs = torch.randn(2, 12)
    assert not torch.equal(other(inputs), net(inputs))
    assert all(not p.detach().any() for p in tuning.parameters())
