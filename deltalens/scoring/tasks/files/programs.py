"""Running generated programs, for tasks that measure whether they pass tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

__all__ = ["pass_at_1", "passes"]

_SECONDS = 3.0
"""As the metric `code_eval` has it."""
_MEMORY = 2 << 30
"""Bytes of address space of a program."""
_PASSED = 77
"""The runner's exit code after the last statement; a program that exits by itself has another."""
_LIMITED = f"""
import os, resource, sys
for limit, most in ((resource.RLIMIT_AS, {_MEMORY}), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(limit, (most, most))
exec(compile(sys.stdin.read(), "program", "exec"), {{"__name__": "program"}})
os._exit({_PASSED})
"""


def pass_at_1(references: str | Sequence[str], predictions: Sequence[str | Sequence[str]]) -> float:
    """Compute the share of programs that pass their tests, as the harness's metric for MBPP does.

    Args:
        references: the tests, as Python statements; one text, or one for each prediction.
        predictions: generated programs; of several for the same tests each counts.

    Returns:
        A number from 0 to 1.
    """
    tests = [references] if isinstance(references, str) else references
    shares = []
    for test, generated in zip(tests, predictions, strict=True):
        programs = [generated] if isinstance(generated, str) else generated
        shares.append(sum(passes(f"{each}\n{test}") for each in programs) / len(programs))
    return sum(shares) / len(shares)


def passes(program: str) -> bool:
    """Run a program in a process of its own: in an empty folder, without our environment, for three
    seconds, with 2 GiB of memory. That is no sandbox: it has the user's rights.

    Args:
        program: Python statements, its tests included.

    Returns:
        Whether it came to its end without an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            process.communicate(program.encode("utf-8", "replace"), timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _kill_all(process)
        return process.returncode == _PASSED


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
