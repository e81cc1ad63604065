"""`deltalens demo gmt`: Gradient-Mask Tuning and its baselines on the demo's base."""

from __future__ import annotations

import os
from pathlib import Path

from deltalens.cli import console
from deltalens.cli.demo import DEFAULT_FOLDER, Folder, made, say
from deltalens.cli.options import Debug, Quiet
from deltalens.cli.sweep import mask_ratio

_SETTINGS = {"batch_size": 32, "learning_rate": 2e-3, "seeds": 3}


def demo_gmt(out: Folder = DEFAULT_FOLDER, quiet: Quiet = False, debug: Debug = False) -> None:
    """Fine-tune the demo's base by several methods and mask ratios, each with three seeds.

    Takes about fifteen minutes on two cores, downloads nothing, and can be stopped: the same
    command goes on where it was.

    \b
    Example:
    deltalens demo gmt -o deltalens-demo/
    """
    with console.command(debug, f"stopped; finished trainings are kept in {out}"):
        from deltalens.demo import build_base
        from deltalens.numerics.workers import one_thread

        paths = made(build_base, out, quiet, {"base": "base"})
        base, tests = str(paths.base), {name: files["test"] for name, files in paths.data.items()}
        jobs = min(_MOST_JOBS, os.cpu_count() or 1)
        with one_thread():
            for text, methods, ratios, data, measured, study in (
                (
                    _ONE,
                    "gmt,random-mask,one-off-drop,hft",
                    _RATIOS,
                    "maths",
                    ["maths"],
                    "gmt-maths",
                ),
                (_MANY, "gmt", "0.95,0.99", "mixture", list(tests), "gmt-mixture"),
            ):
                file, folder = paths.training[data], out / study
                shown = " ".join(f"--eval-data {tests[name]}" for name in measured)
                say(quiet, text.format(methods, base, file, shown, ratios, jobs, folder))
                mask_ratio(
                    methods=methods,
                    model=base,
                    data=file,
                    eval_data=[tests[name] for name in measured],
                    out=Path(folder),
                    ratios=ratios,
                    jobs=jobs,
                    quiet=quiet,
                    debug=debug,
                    **_SETTINGS,
                )


_MOST_JOBS = 8
"""Trainings at once, each on one thread: about 700 MB of memory each."""
_RATIOS = "0.2,0.5,0.8,0.9,0.95,0.99"
_COMMAND = (
    "$ deltalens sweep mask-ratio {} {} --data {} {} --ratios {} --batch-size 32 --lr 2e-3 "
    "--jobs {} -o {}\n"
)
_ONE = f"\nHow much of each step can be masked, and does it matter which part?\n{_COMMAND}"
_MANY = f"\n... and when several domains are learned at once?\n{_COMMAND}"
