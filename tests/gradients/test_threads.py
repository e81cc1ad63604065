"""Trainings on threads of their own, and masks that come and go meanwhile."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from deltalens import GradientMask, GradientProbe, MaskTuning, load_run
from tests.support.clean_hooks import hook_count
from tests.support.masked_training import bits_of
from tests.support.mft_models import llama as finished

SIZE, STEPS = 24, 1000


def training(seed: int, folder: Path) -> tuple[int, int, int]:
    """Steps that moved another number of entries than the mask leaves, that were counted by the
    mask, and that were logged."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(SIZE, SIZE, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    wrong, kept = 0, SIZE * SIZE - round(0.9 * SIZE * SIZE)
    with (
        GradientMask(model, 0.9, apply_to="update") as mask,
        GradientProbe(model, folder, mask_ratios=(), overlap=False) as probe,
    ):
        for _ in range(STEPS):
            before = model.weight.detach().clone()
            model.weight.grad = torch.randn(SIZE, SIZE, generator=generator)
            optimizer.step()
            wrong += int((model.weight != before).sum()) != kept
    return wrong, mask.steps, probe.steps


def test_two_threads_with_a_model_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(training, seed, tmp_path / str(seed)) for seed in range(2)]
        found = [job.result() for job in jobs]
    assert found == [(0, STEPS, STEPS)] * 2
    for seed in range(2):
        assert load_run(tmp_path / str(seed)).tensors.step.tolist() == list(range(STEPS))


def test_masks_come_and_go_while_others_train(tmp_path: Path) -> None:
    done = threading.Event()

    def coming_and_going() -> int:
        times = 0
        while not done.is_set():
            with GradientMask(nn.Linear(3, 3), 0.5) as mask:
                mask.notified = True  # No step is expected of it.
            if times % 20 == 0:
                MaskTuning(finished()).detach()
            times += 1
        return times

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(coming_and_going)
        found = pool.submit(training, 0, tmp_path / "run").result()
        done.set()
        assert other.result() > 10
    assert found == (0, STEPS, STEPS)


def test_a_mask_detached_in_the_middle_of_a_step_still_puts_weights_back() -> None:
    model = nn.Linear(SIZE, SIZE, bias=False)
    mask = GradientMask(model, 0.9, apply_to="update")
    torch.optim.SGD(model.parameters(), lr=0.1)  # torch prepares a class when it is first used

    class Detaching(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            thread = threading.Thread(target=mask.detach)
            thread.start()
            thread.join()
            super().step()

    optimizer = Detaching(model.parameters(), lr=0.1, weight_decay=0.1)
    model.weight.grad = torch.randn(SIZE, SIZE)
    before = bits_of(model)["weight"]
    mask.attach()
    optimizer.step()
    assert int((model.weight != before).sum()) == SIZE * SIZE - round(0.9 * SIZE * SIZE)
    assert not hook_count()
    optimizer.step()
    assert int((model.weight != before).sum()) == SIZE * SIZE


def test_several_threads_detach_one_mask_once() -> None:
    mask = GradientMask(nn.Linear(3, 3), 0.5).attach()
    with warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        for job in [pool.submit(mask.detach) for _ in range(8)]:
            job.result()
    assert len([one for one in told if "saw no optimizer step" in str(one.message)]) == 1
    assert not hook_count()


def test_other_peoples_hooks_stay_and_ours_wait_for_them() -> None:
    """A hook cannot leave the dictionary that a step is iterating over."""
    model = nn.Linear(3, 3)
    mask = GradientMask(model, 0.5)

    def detach_meanwhile(*_: object) -> None:
        thread = threading.Thread(target=mask.detach)
        thread.start()
        thread.join()

    handle = torch_optimizer.register_optimizer_step_pre_hook(detach_meanwhile)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.grad = torch.ones(3, 3)
    mask.attach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    assert mask.steps == 0
    handle.remove()
    with GradientMask(model, 0.5) as mask:
        optimizer.step()
    assert mask.steps == 1
    assert not hook_count()
