"""A model that is looked at, and is afterwards as it was before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

__all__ = ["computed_plainly", "preserved"]

Part = Literal["attn", "experts"]
"""A part of a model that transformers computes in several ways."""


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, where no weight takes a gradient; then restore it.

    Restored are modes, gradients, which parameters take gradients, buffers, and the states of the
    random generators of torch, numpy and Python, after an exception, too.

    Args:
        model: the model.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(each, each.grad, each.requires_grad) for each in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    config = getattr(model, "config", None)
    cache = getattr(config, "use_cache", None)
    with _random_states(model):
        try:
            model.eval()
            if cache:
                config.use_cache = False  # type: ignore[union-attr]
            for parameter, _, _ in parameters:
                parameter.grad = None
                parameter.requires_grad_(False)
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, gradient, takes_gradient in parameters:
                parameter.requires_grad_(takes_gradient)
                parameter.grad = gradient
            for module, name, buffer, saved in buffers:
                buffer.copy_(saved)
                module._buffers[name] = buffer
            if cache:
                config.use_cache = cache  # type: ignore[union-attr]


@contextmanager
def _random_states(model: nn.Module) -> Iterator[None]:
    devices = {
        each.device for each in model.parameters() if each.device.type not in ("cpu", "meta", "mps")
    }
    python, legacy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        kinds = sorted({device.type for device in devices}) or ["cuda"]
        for kind in kinds:
            numbers = [device for device in devices if device.type == kind]
            stack.enter_context(torch.random.fork_rng(numbers, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


@contextmanager
def computed_plainly(model: nn.Module, *parts: Part) -> Iterator[None]:
    """Let a transformers model compute some of its parts step by step; then as before.

    Fused kernels have no second derivative, hide the softmax, and take only some dtypes. A model
    that is not of transformers stays as it is.

    Args:
        model: the model.
        parts: `attn` and `experts`, as transformers calls them.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(_eager(model, part))
        yield


@contextmanager
def _eager(model: nn.Module, part: Part) -> Iterator[None]:
    switch = getattr(model, f"set_{part}_implementation", None)
    setting = f"_{part}_implementation"
    configs = _configs_with(model, setting)
    if switch is None or all(before == "eager" for _, before in configs):
        yield
        return
    try:
        switch("eager")
        yield
    finally:
        # From the outside in: setting a configuration sets those inside it, too.
        for config, before in configs:
            setattr(config, setting, before)


def _configs_with(model: nn.Module, setting: str) -> list[tuple[Any, str]]:
    """The configurations that have a setting, those of outer modules first."""
    found: dict[int, tuple[Any, str]] = {}
    pending = [getattr(module, "config", None) for module in model.modules()]
    for config in pending:
        value = getattr(config, setting, None)
        if config is None or value is None or id(config) in found:
            continue
        found[id(config)] = (config, value)
        pending += [getattr(config, key, None) for key in getattr(config, "sub_configs", ())]
    return list(found.values())
