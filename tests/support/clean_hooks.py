"""One thread for small tensors, and no hook on torch's optimizers that outlives its test."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch.optim import optimizer


def hook_count() -> int:
    """How many hooks run around every optimizer's steps."""
    return len(optimizer._global_optimizer_pre_hooks) + len(optimizer._global_optimizer_post_hooks)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of small tensors, several threads would spend their time on waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_hook_stays() -> Iterator[None]:
    """What a test attaches is detached, or has gone with its model."""
    before = hook_count()
    yield
    if hook_count() > before:
        gc.collect()
    assert hook_count() <= before
