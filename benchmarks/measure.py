"""Comparing in one run: contestants take turns, and the ratio is taken turn by turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["AT_ONCE", "KEPT", "Run", "interleaved", "report", "run_process"]

AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment under which glibc gives freed buffers back at once: a process then has the memory
that lives in it, and nothing of what lived before."""
KEPT = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""Environment under which glibc keeps freed buffers: else it gives the end of its heap back and
fetches it again at every operation or at none, as the heap happens to lie, which changed the time
of one and the same study by a fifth."""


class Run(NamedTuple):
    """One whole process."""

    seconds: float
    peak_mb: float
    """VmHWM, in MB of 10^6 bytes."""


def interleaved(
    contestants: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each contestant, in `rounds` rounds in which each runs once; one round is thrown
    away first."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            begun = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def run_process(command: Sequence[str], more: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, with more in its environment; its peak memory is read from the
    kernel while it runs."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | dict(more or {}),
    )
    peak = [0.0]

    def watch() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            found = [line for line in lines if line.startswith("VmHWM")]
            peak[0] = max(peak[0], *(int(line.split()[1]) * 1024 / 1e6 for line in found), 0.0)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    watcher.join()
    if process.returncode:
        sys.stderr.write(errors.decode(errors="replace"))
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Run(time.perf_counter() - begun, peak[0])


def report(name: str, ours: Sequence[float], peer: Sequence[float], **more: object) -> None:
    """Print one JSON line: medians in seconds, and the ratio peer / ours, turn by turn, with its
    10th and 90th percentile."""
    ratios = sorted(theirs / mine for mine, theirs in zip(ours, peer, strict=True))
    line = {
        "name": name,
        "ours": round(statistics.median(ours), 5),
        "peer": round(statistics.median(peer), 5),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_p10_p90": [round(ratios[int(q * (len(ratios) - 1))], 2) for q in (0.1, 0.9)],
        "cores": os.cpu_count(),
        **more,
    }
    print(json.dumps(line), flush=True)
