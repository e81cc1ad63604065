"""Small tensors: several threads would spend their time on waiting for each other."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch.optim import optimizer


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_hook_stays() -> Iterator[None]:
    registered = optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks
    before = [len(hooks) for hooks in registered]
    yield
    if any(len(hooks) > count for hooks, count in zip(registered, before, strict=True)):
        gc.collect()
    for hooks, count in zip(registered, before, strict=True):
        assert len(hooks) <= count
