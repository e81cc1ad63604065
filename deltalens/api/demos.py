"""The demos: models made on the spot, and the library's functions on them, step by step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from deltalens.api import deltas, records, studies, sweeps, training
from deltalens.api.described import Arg, Opt, described
from deltalens.api.reproducing import Reproduction, reproduce
from deltalens.api.steps import DemoWatch, ReproduceWatch, Step
from deltalens.catalog.plugins import load_code
from deltalens.catalog.salience import SALIENCE_METRICS
from deltalens.errors import DeltaLensError

__all__ = ["PARTS", "build_demo"]

_MOST_JOBS = 8
"""Trainings at once, each on one thread: about 700 MB of memory each."""
_DOMAINS = ("maths", "code", "instructions")
_MIXTURE = "mixture"
_BATCHES: Mapping[str, Any] = {"batch_size": 32, "learning_rate": 2e-3}
_RATIO, _SCORE_RATE = "0.2", 3e-3
_RANK, _SPARSE_RATES = 4, (2e-3, 2e-2, 6e-2)
"""LoRA's rank that counts for all, and the rates of which each method has its own."""


@described
def build_demo(
    part: Annotated[
        str, Arg("[PART]", "More than the pair: probe, gmt, mft, speft, or landscape.")
    ] = "pair",
    out: Annotated[
        str | Path,
        Opt("Where the demo is made.", metavar="DIR", flags=("-o",), common=True),
    ] = "deltalens-demo",
    *,
    all: Annotated[
        bool, Opt("Every figure and table of the papers; up to an hour.", common=True)
    ] = False,
    domain: Annotated[
        str,
        Opt(
            "landscape: what the fine-tune learns.", metavar="maths|instructions|code", common=True
        ),
    ] = "maths",
    watch: Annotated[
        DemoWatch | None, Opt("A `DemoWatch`; with `all`, a `ReproduceWatch`.", python_only=True)
    ] = None,
) -> dict[str, Any] | Reproduction:
    """Train tiny models, and try deltalens on them; nothing is downloaded.

    Without PART: a base and a fine-tune of it, what their delta looks like, and two drop studies;
    about two minutes on two cores. probe: the fine-tuning with a gradient probe. gmt: Gradient-Mask
    Tuning and its baselines, fifteen minutes. mft: masks learned on fine-tunes of three domains,
    eighteen minutes. speft: sparse tuning by eight saliences beside LoRA, fifteen minutes.
    landscape: the loss between three models. `all`: the papers' experiments in miniature, one
    after the other, and every figure and table that they have; up to an hour. The folder holds
    ordinary Hugging Face models and rows to try other commands on. Stopped, the same call goes on.

    Args:
        part: `pair`, `probe`, `gmt`, `mft`, `speft` or `landscape`.
        out: the demo's folder.
        all: everything that `reproduce(all=True, demo=True)` makes.
        domain: of `landscape`: `maths`, `instructions` or `code`.
        watch: told of progress, and handed every step.

    Returns:
        The folder's name of each result -> the result; with `all`, what became of every step and
        figure.

    Raises:
        DeltaLensError: no such part or domain, a part beside `all`, or the folder holds what no
            demo wrote.

    Example:
        >>> results = deltalens.build_demo("probe", "demo")
        >>> [*results]
        ['probe-run']
    """
    if all:
        if part != "pair":
            raise DeltaLensError(f"all is more than part {part}: leave one of them out")
        whole = watch or DemoWatch()
        if not isinstance(whole, ReproduceWatch):
            whole = ReproduceWatch(train=whole.train, step=whole.step)
        return reproduce(out=out, all=True, demo=True, watch=whole)
    from deltalens.numerics.workers import one_thread

    watch, out = watch or DemoWatch(), Path(out)
    if part not in PARTS:
        raise DeltaLensError(f"part {part!r}: choose one of {', '.join(PARTS)}")
    found: dict[str, Any] = {}
    for step in PARTS[part](out, watch.train, domain):
        crowded: AbstractContextManager[Any] = one_thread()
        if part in ("pair", "probe"):
            found[_name(step)] = watch.step(step)
            continue
        with crowded:
            found[_name(step)] = watch.step(step)
    return found


def _name(step: Step) -> str:
    place = step.arguments.get("out") or step.arguments["folder"]
    return Path(place).name


Train = Callable[[str, int, int], None]


def _pair(out: Path, train: Train, domain: str) -> Iterator[Step]:
    from deltalens.demo import build_demo as build

    paths = build(out, report=train)
    pair: Mapping[str, Any] = {"ft": str(paths.ft), "base": str(paths.base)}
    test = paths.data["maths"]["test"]
    yield Step("How is the delta made?", deltas.inspect, {**pair, "out": out / "anatomy"})
    yield Step(
        "How much can be put back, judged without data?",
        studies.drop_study,
        {**pair, "out": out / "study-fidelity"},
    )
    yield Step(
        "... and judged on 300 problems that it has not seen?",
        studies.drop_study,
        {**pair, "out": out / "study-maths", "data": [test]},
    )


def _probe(out: Path, train: Train, domain: str) -> Iterator[Step]:
    from deltalens.demo import build_probe_run

    run = build_probe_run(out, report=train).probe_run
    question = "What do the gradients of the fine-tuning look like?"
    yield Step(question, records.monitor, {"folder": run})


def _gmt(out: Path, train: Train, domain: str) -> Iterator[Step]:
    from deltalens.demo import build_base

    paths = build_base(out, report=train)
    tests = {name: files["test"] for name, files in paths.data.items()}
    shared = {"model": str(paths.base), "seeds": 3, "jobs": _jobs(), **_BATCHES}
    yield Step(
        "How much of each step can be masked, and does it matter which part?",
        sweeps.sweep_mask_ratio,
        {
            "methods": "gmt,random-mask,one-off-drop,hft",
            "train_data": paths.training["maths"],
            "eval_data": [tests["maths"]],
            "mask_ratios": "0.2,0.5,0.8,0.9,0.95,0.99",
            "out": out / "gmt-maths",
            **shared,
        },
    )
    yield Step(
        "... and when several domains are learned at once?",
        sweeps.sweep_mask_ratio,
        {
            "methods": "gmt",
            "train_data": paths.training[_MIXTURE],
            "eval_data": [*tests.values()],
            "mask_ratios": "0.95,0.99",
            "out": out / "gmt-mixture",
            **shared,
        },
    )


def _mft(out: Path, train: Train, domain: str) -> Iterator[Step]:
    from deltalens.demo import build_base

    paths = build_base(out, report=train)
    for name in (*_DOMAINS, _MIXTURE):
        yield from _finetune(name, paths.base, paths.training[f"{name}_few"], out / f"ft-{name}")
    # The test rows are those by which rates, ratio and few rows were found.
    tests = [paths.unseen[name] for name in _DOMAINS]
    shared = {"steps": 150, "seeds": 3, "jobs": _jobs(), **_BATCHES}
    both = {"mask_ratio": _RATIO, "score_learning_rate": _SCORE_RATE}
    starts = [*((name, name) for name in _DOMAINS), *((_MIXTURE, name) for name in _DOMAINS)]
    for start, learned in starts:
        last = (start, learned) == starts[-1]
        yield Step(
            f"From the fine-tune on {start}, go on with {learned}: do masks beat more training?",
            sweeps.compare,
            {
                "methods": "mft,sft,random-mask-weights,l1-mask",
                "model": str(out / f"ft-{start}"),
                "base": str(paths.base),
                "train_data": paths.training[f"{learned}_few"],
                "eval_data": tests,
                "choose_on": paths.data[learned]["validation"],
                "eval_every": 50,
                "setting": both,
                "out": _study(out, start, learned),
                **shared,
            },
            pictures=(lambda: _tables(out)) if last else lambda: [],
        )
    code: dict[str, Any] = {
        "methods": "mft",
        "model": str(out / "ft-code"),
        "train_data": paths.training["code_few"],
        "eval_data": [paths.unseen["code"]],
        "choose_on": paths.data["code"]["validation"],
        **shared,
    }
    only_rate = {"score_learning_rate": _SCORE_RATE}
    yield Step(
        "Which blocks are best masked?",
        sweeps.sweep_layers,
        {**code, "group_sizes": (1,), "setting": both, "out": out / "mft-layers"},
    )
    ratios = {"mask_ratios": "0.05,0.1,0.2,0.4", "setting": only_rate}
    yield Step(
        "How much of them?",
        sweeps.sweep_mask_ratio,
        {**code, **ratios, "out": out / "mft-mask-ratio"},
    )
    parts = {"data_ratios": "0.1,0.5,1", "setting": both}
    yield Step(
        "On how much data?",
        sweeps.sweep_data_ratio,
        {**code, **parts, "out": out / "mft-data-ratio"},
    )


def _finetune(name: str, base: Path, data: Path, ft: Path) -> Iterator[Step]:
    """Train on few rows until they are known by heart, unless that is done."""
    from deltalens.io.checkpoint import open_checkpoint
    from deltalens.io.records import load_training

    done = (ft / "config.json").exists()
    if done and load_training(ft).spec.get("model") == open_checkpoint(base).identity:
        return
    shutil.rmtree(ft, ignore_errors=True)
    yield Step(
        f"Fine-tune on few rows of {name}, again and again:",
        training.train,
        {
            "method": "sft",
            "model": str(base),
            "train_data": data,
            "out": ft,
            "steps": 400,
            **_BATCHES,
        },
    )


def _study(out: Path, start: str, learned: str) -> Path:
    return out / (f"mft-{start}" if start == learned else f"mft-{start}-{learned}")


def _tables(out: Path) -> list[Path]:
    """Tables 1 and 5 and Figure 2 take all domains; they lie in the first one's study. What starts
    from the mixture is Table 1's lower half."""
    own = [_study(out, name, name) for name in _DOMAINS]
    mixed = [_study(out, _MIXTURE, name) for name in _DOMAINS]
    draw = load_code("deltalens.figures:draw_figure")
    return [*draw("mft-tab1", own, mixed=mixed), *draw("mft-tab5", own), *draw("mft-fig2", own)]


def _speft(out: Path, train: Train, domain: str) -> Iterator[Step]:
    from deltalens.demo import build_base

    paths = build_base(out, report=train)
    rows = paths.data["maths"]
    shared = {
        "model": str(paths.base),
        "train_data": paths.training["maths"],
        "eval_data": [rows["test"]],
        "choose_on": rows["validation"],
        "learning_rate": _SPARSE_RATES,
        "setting": {"like_lora": _RANK, "targets": "attention", "examples": 512},
        "steps": 100,
        "eval_every": 50,
        "batch_size": 16,
        "seeds": 3,
        "jobs": _jobs(),
    }
    low_rank = f"lora-rank={_RANK}:lora-alpha=rank"
    sparse = [f"speft:metric={metric}" for metric in SALIENCE_METRICS]
    yield Step(
        "With equally many trained numbers, which entries are best trained, and is LoRA better?",
        sweeps.compare,
        {
            "methods": ",".join(["sft", f"lora:{low_rank}", f"pissa:{low_rank}", *sparse]),
            "out": out / "speft-metrics",
            **shared,
        },
    )
    yield Step(
        "Do masks that are renewed help, and masks of each weight by itself?",
        sweeps.sweep_masks,
        {
            "methods": "speft",
            "scopes": "global,tensor",
            "refresh_every": 25,
            "out": out / "speft-masks",
            **shared,
        },
    )


def _landscape(out: Path, train: Train, domain: str) -> Iterator[Step]:
    from deltalens.demo.landscape import ROWS, build_landscape

    paths, study = build_landscape(out, domain, report=train), out / f"landscape-{domain}"

    def across() -> list[Path]:
        draw = load_code("deltalens.figures:draw_figure")
        if domain == "code":
            return list(draw("mft-fig10", study, out))
        drawn = [out / f"landscape-{name}" for name in ("maths", "instructions")]
        return list(draw("mft-fig6", [s for s in drawn if (s / "landscape.png").is_file()], out))

    yield Step(
        "Where do the three lie, and what is between them?",
        studies.scan_landscape,
        {
            "origin": str(paths.ft),
            "others": [str(paths.continued), str(paths.masked)],
            "base": str(paths.base),
            "data": [paths.train, paths.test],
            "limit": ROWS,
            "grid": "15x15",
            "out": study,
        },
        pictures=across,
    )


def _jobs() -> int:
    return min(_MOST_JOBS, os.cpu_count() or 1)


PARTS: Mapping[str, Callable[[Path, Train, str], Iterator[Step]]] = {
    "pair": _pair,
    "probe": _probe,
    "gmt": _gmt,
    "mft": _mft,
    "speft": _speft,
    "landscape": _landscape,
}
"""What the demo can show."""
