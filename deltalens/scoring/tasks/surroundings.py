"""What the harness runs in: its seeds, and a terminal and environment that it leaves alone."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["GeneratorStates", "code_allowed", "quiet", "seeded"]

# The defaults of lm_eval.simple_evaluate.
_PYTHON_SEED, _SEED = 0, 1234
_ALLOW = "HF_ALLOW_CODE_EVAL"


@dataclass(frozen=True)
class GeneratorStates:
    """States of the global generators of Python, numpy and, on the CPU, torch."""

    python: Any
    numpy: Any
    torch: torch.Tensor

    @classmethod
    def now(cls) -> GeneratorStates:
        """Read the states.

        Returns:
            The current ones.
        """
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state())

    def restore(self) -> None:
        """Put the generators into these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)


@contextmanager
def seeded(states: GeneratorStates | None = None) -> Iterator[None]:
    """Give the global generators the harness's default seeds for the duration of the block; they
    continue as before afterwards. The harness and its tasks draw from them.

    Args:
        states: continue from these states instead; accelerators are seeded all the same.

    Yields:
        None.
    """
    before = GeneratorStates.now()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            random.seed(_PYTHON_SEED)
            np.random.seed(_SEED)
            torch.manual_seed(_SEED)
            if states is not None:
                states.restore()
            yield
        finally:
            before.restore()


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Keep the harness's prints and its warnings about every model off the terminal, unless logging
    is set up.

    Args:
        bars: also keep away what is written to stderr: progress bars that have no switch.

    Yields:
        None.
    """
    logger = logging.getLogger("lm_eval")
    level = logger.level
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not logging.getLogger().handlers:
            logger.setLevel(logging.ERROR)
            stack.callback(logger.setLevel, level)
            if bars:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextmanager
def code_allowed(allowed: bool) -> Iterator[None]:
    """Set the variable by which `evaluate` is told that generated code may run.

    Args:
        allowed: whether it may; if not, the variable stays as it is.

    Yields:
        None.
    """
    before = os.environ.get(_ALLOW)
    if allowed:
        os.environ[_ALLOW] = "1"
    try:
        yield
    finally:
        if allowed and before is None:
            del os.environ[_ALLOW]
        elif allowed and before is not None:
            os.environ[_ALLOW] = before
