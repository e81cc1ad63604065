"""A model whose entries are trained, under what else users and libraries do with a model."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deltalens import DeltaLensError, GradientMask, GradientProbe, SparseTuning, load_run
from tests.support.models import tiny
from tests.support.sparse_models import Net, random_masks, same_model

BOTH = ["first", "second"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tuned(density: float = 0.1) -> tuple[Net, SparseTuning]:
    net = Net()
    return net, SparseTuning(net, masks=random_masks(net, BOTH, density))


def moved(tuning: SparseTuning) -> None:
    """Values that are not zero any more, in the weights."""
    with torch.no_grad():
        for values in tuning.parameters():
            values.normal_()
    tuning.write()


def test_a_pickled_model_computes_and_trains_the_same() -> None:
    net, tuning = tuned()
    moved(tuning)
    other = pickle.loads(pickle.dumps(net))
    inputs = torch.randn(3, 12)
    assert torch.equal(other(inputs), net(inputs))
    for each in (net, other):
        each(inputs).sum().backward()
    own, others = ([p.grad for p in m.parameters() if p.requires_grad] for m in (net, other))
    assert all(torch.equal(one, two) for one, two in zip(own, others, strict=True))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_trains_the_same(backend: str) -> None:
    net, tuning = tuned()
    plain = copy.deepcopy(net)
    compiled: Any = torch.compile(net, backend=backend)
    trained = [[p for p in each.parameters() if p.requires_grad] for each in (net, plain)]
    optimizers = [torch.optim.SGD(each, lr=0.1) for each in trained]
    for _ in range(3):
        inputs = torch.randn(8, 12)
        for model, optimizer in zip((compiled, plain), optimizers, strict=True):
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    plain(inputs)
    assert tuning.step == 3
    for own, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_values_of_a_converted_model_stay_in_fp32(dtype: torch.dtype) -> None:
    net, tuning = tuned()
    base = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    for kind in (torch.float32, dtype, dtype):
        net.to(kind)
        net(torch.randn(4, 12, dtype=kind)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert net.first.weight.dtype == dtype
    assert all(values.dtype == torch.float32 for values in tuning.parameters())
    assert torch.isfinite(net.first.weight).all()
    tuning.unmerge()
    assert torch.equal(net.first.weight, base.first.weight.to(dtype))


def test_a_forward_in_inference_mode_sees_changed_values_and_training_goes_on() -> None:
    net, tuning = tuned()
    with torch.no_grad():
        tuning.parameters()[0].add_(1.0)
    inputs = torch.randn(2, 12)
    with torch.inference_mode():
        seen = net(inputs)
    assert torch.equal(seen, net(inputs))
    net(inputs).sum().backward()
    torch.optim.SGD(tuning.parameters(), lr=0.1).step()


def test_saving_between_the_forward_and_the_backward_pass_is_harmless(tmp_path: Any) -> None:
    net, tuning = tuned()
    moved(tuning)
    output = net(torch.randn(2, 12)).sum()
    tuning.save(tmp_path / "adapter.safetensors")
    tuning.state_dict()
    output.backward()


def test_a_layer_is_called_with_its_inputs_name() -> None:
    net, _ = tuned()
    inputs = torch.randn(2, 12)
    assert torch.equal(net.first(input=inputs), net.first(inputs))


def test_no_rows_give_zero_gradients() -> None:
    net, tuning = tuned()
    net(torch.randn(0, 12)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in tuning.parameters())


def test_a_module_that_is_used_several_times_adds_its_gradients() -> None:
    shared = nn.Linear(12, 12)
    net = nn.Sequential(shared, nn.Tanh(), shared)
    plain = copy.deepcopy(net)
    mask = torch.rand(12, 12) < 0.1
    (values,) = SparseTuning(net, masks={"0": mask}).parameters()
    inputs = torch.randn(5, 12)
    net(inputs).sum().backward()
    plain(inputs).sum().backward()
    torch.testing.assert_close(values.grad, plain[0].weight.grad[mask])


class Attending(nn.Module):
    """Torch's own attention, which reads the weight of its output layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.last = nn.Linear(8, 8)


class Hooked(nn.Module):
    """A layer whose forward was replaced, as accelerate does to move weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.first.forward = self.first.forward  # type: ignore[method-assign]


@pytest.mark.parametrize(("kind", "name"), [(Attending, "out_proj"), (Hooked, "first")])
def test_a_layer_that_is_not_called_is_refused(kind: Any, name: str) -> None:
    with pytest.raises(DeltaLensError, match=rf"(?s)without calling the layers.*{name}"):
        SparseTuning(kind(), 0.5, metric="magnitude", targets=[name])


@pytest.mark.filterwarnings("ignore:not adapted")
def test_layers_that_fused_kernels_pass_by_are_left_out_and_said() -> None:
    model = tiny("mamba", vocab_size=31)
    tuning = SparseTuning(model, 0.1, metric="magnitude", targets="linear")
    assert {name.split(".")[-2] for name in tuning.indices()} == {"in_proj"}
    assert any("x_proj, dt_proj, out_proj" in note for note in tuning.notes)
    tuning.unmerge()
    with pytest.raises(DeltaLensError, match=r"(?s)without calling the layers.*dt_proj"):
        SparseTuning(model, 0.1, metric="magnitude", targets=["dt_proj"])


def test_a_weight_that_is_not_contiguous_is_refused() -> None:
    net = Net()
    net.first.weight.data = torch.randn(12, 20).t()
    with pytest.raises(DeltaLensError, match=r"(?s)not contiguous in memory.*first"):
        SparseTuning(net, masks=random_masks(net, BOTH, 0.1))


@pytest.mark.parametrize(
    "mask",
    [torch.rand(20, 12), torch.ones(20, 12, dtype=torch.uint8), torch.rand(240), [1, 2]],
)
def test_what_is_neither_a_bool_mask_nor_indices_is_refused(mask: Any) -> None:
    with pytest.raises(DeltaLensError, match="first: neither a bool mask nor flat indices"):
        SparseTuning(Net(), masks={"first": mask})


def test_an_index_beyond_32_bits_is_refused() -> None:
    with pytest.raises(DeltaLensError, match="beyond the weight's 240"):
        SparseTuning(Net(), masks={"first": torch.tensor([1 << 40])})


def test_a_tied_head_is_refused_by_name() -> None:
    model = tiny("llama", vocab_size=31, tie_word_embeddings=True)
    with pytest.raises(DeltaLensError, match="lm_head: its weight is tied to another layer's"):
        SparseTuning(model, 0.1, metric="magnitude", targets=["lm_head"])


def test_two_models_are_tuned_beside_each_other() -> None:
    pairs = [tuned(), tuned(0.2)]
    optimizers = [torch.optim.AdamW(tuning.parameters(), lr=1e-2) for _, tuning in pairs]
    for count, ((net, _), optimizer) in enumerate(zip(pairs, optimizers, strict=True), 1):
        for _ in range(count):
            net(torch.randn(2, 12)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [tuning.step for _, tuning in pairs] == [1, 2]


def test_a_state_of_a_plain_model_is_refused_rather_than_mixed_with_the_values() -> None:
    net, tuning = tuned()
    moved(tuning)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(DeltaLensError, match=r"entries are not trained.*Load it before"):
        net.load_state_dict(Net().state_dict(), strict=False)
    part = {name: each for name, each in before.items() if name != "first.sparse_values"}
    with pytest.raises(DeltaLensError, match=r"it has no first\.sparse_values"):
        net.load_state_dict(part)
    net.load_state_dict({}, strict=False)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())


def test_a_refused_state_leaves_the_layer_as_it_was() -> None:
    net, tuning = tuned()
    moved(tuning)
    other, _ = tuned()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(DeltaLensError, match="another base"):
        net.load_state_dict(other.state_dict())
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())


def test_a_probe_and_masked_gradients_follow_masks_that_change_size(tmp_path: Any) -> None:
    net = Net()
    base = copy.deepcopy(net)
    tuning = SparseTuning(net, 0.1, metric="random", targets=BOTH, refresh_every=2)
    optimizer = torch.optim.AdamW(tuning.parameters(), lr=1e-2)
    sizes = []
    with (
        GradientProbe(net, tmp_path / "run", every=1, updates=True),
        GradientMask(net, mask_ratio=0.5, apply_to="update"),
    ):
        for _ in range(6):
            net(torch.randn(4, 12)).square().mean().backward()
            sizes.append({name: len(flat) for name, flat in tuning.indices().items()})
            optimizer.step()
            optimizer.zero_grad()
    assert len({each["first.weight"] for each in sizes}) > 1
    logged = load_run(tmp_path / "run").tensors
    found = logged.pivot_table(index="step", columns="tensor", values="entries")
    assert found.to_dict("records") == sizes
    assert same_model(tuning.unmerge(), base)


def trained_by_transformers(folder: Path, stop: int | None, resume: bool) -> SparseTuning:
    """Five steps of transformers' own trainer, or as many as until it is stopped."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(6, 30, (9,), generator=generator)} for _ in range(20)]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]

    def batches(number: int) -> Any:
        return ({name: each.unsqueeze(0) for name, each in row.items()} for row in rows[number:])

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = state.global_step == stop

    torch.manual_seed(0)
    model = tiny("llama", vocab_size=31)
    tuning = SparseTuning(model, 0.2, batches=batches, steps=3, refresh_every=3)
    options = TrainingArguments(
        str(folder),
        max_steps=5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, options, train_dataset=rows, callbacks=[Stop()])  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=resume)
    return tuning


@pytest.mark.parametrize("stop", [2, 3])
def test_transformers_own_trainer_resumes_a_dynamic_run_bit_for_bit(
    stop: int, tmp_path: Path
) -> None:
    whole = trained_by_transformers(tmp_path / "whole", None, False)
    trained_by_transformers(tmp_path / "stopped", stop, False)
    resumed = trained_by_transformers(tmp_path / "stopped", None, True)
    assert resumed.step == 5
    assert same_model(resumed.merge(), whole.merge())
