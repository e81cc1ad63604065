"""`deltalens demo mft`: masks learned on finished fine-tunes of three domains, and their rivals."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from deltalens.cli import console
from deltalens.cli.compare import compare
from deltalens.cli.demo import DEFAULT_FOLDER, Folder, made, say
from deltalens.cli.options import Debug, Quiet
from deltalens.cli.sweep import data_ratio, mask_ratio
from deltalens.cli.sweep_layers_mft import layers_mft
from deltalens.cli.train import train

_DOMAINS = ("maths", "code", "instructions")
_MIXTURE = "mixture"
_COMPARISONS = (*((name, name) for name in _DOMAINS), *((_MIXTURE, name) for name in _DOMAINS))
"""What a fine-tune learned, and what the comparison from it goes on with."""
_MOST_JOBS = 8
"""Trainings at once, each on one thread: about 700 MB of memory each."""
_FINETUNE: dict[str, Any] = {"batch_size": 32, "learning_rate": 2e-3, "steps": 400}
_GO_ON: dict[str, Any] = {
    "batch_size": 32,
    "learning_rate": 2e-3,
    "score_learning_rate": 3e-3,
    "steps": 150,
    "seeds": 3,
}
_EVERY = 50
"""Steps between measurements."""
_RATIO = "0.2"
_RIVALS = "mft,sft,random-mask-weights,l1-mask"


def demo_mft(out: Folder = DEFAULT_FOLDER, quiet: Quiet = False, debug: Debug = False) -> None:
    """Learn masks on over-trained fine-tunes of three domains, beside more fine-tuning; and on one
    of their mixture, which goes on to each of them.

    Takes about eighteen minutes on two cores, downloads nothing, and can be stopped: the same
    command goes on where it was.

    \b
    Example:
    deltalens demo mft -o deltalens-demo/
    """
    with console.command(debug, f"stopped; finished trainings are kept in {out}"):
        from deltalens.demo import build_base
        from deltalens.numerics.workers import one_thread

        paths = made(build_base, out, quiet, {"base": "base"})
        jobs = min(_MOST_JOBS, os.cpu_count() or 1)
        # The test rows are those by which rates, ratio and few rows were found.
        tests = [paths.unseen[domain] for domain in _DOMAINS]
        shared: dict[str, Any] = {**_GO_ON, "jobs": jobs, "quiet": quiet, "debug": debug}
        with one_thread():
            for name in (*_DOMAINS, _MIXTURE):
                _finetune(name, paths.base, paths.training[f"{name}_few"], out, quiet)
            for start, domain in _COMPARISONS:
                ft, study = out / f"ft-{start}", _study(out, start, domain)
                data = paths.training[f"{domain}_few"]
                chosen = paths.data[domain]["validation"]
                say(quiet, _COMPARE.format(start, domain, _RIVALS, ft, paths.base, data, study))
                compare(
                    methods=_RIVALS,
                    model=str(ft),
                    base=str(paths.base),
                    data=data,
                    eval_data=tests,
                    choose_on=chosen,
                    mask_ratio=_RATIO,
                    eval_every=_EVERY,
                    out=study,
                    **shared,
                )
            code: dict[str, Any] = {
                "model": str(out / "ft-code"),
                "data": paths.training["code_few"],
                "eval_data": [paths.unseen["code"]],
                "choose_on": paths.data["code"]["validation"],
                **shared,
            }
            say(quiet, _LAYERS.format(out / "mft-layers"))
            layers_mft(group=[1], mask_ratio=_RATIO, out=out / "mft-layers", **code)
            say(quiet, _RATIOS.format(out / "mft-mask-ratio"))
            mask_ratio(methods="mft", ratios="0.05,0.1,0.2,0.4", out=out / "mft-mask-ratio", **code)
            say(quiet, _PARTS.format(out / "mft-data-ratio"))
            data_ratio(
                methods="mft",
                ratios="0.1,0.5,1",
                mask_ratio=_RATIO,
                out=out / "mft-data-ratio",
                **code,
            )
        _tables(
            [_study(out, domain, domain) for domain in _DOMAINS],
            [_study(out, _MIXTURE, domain) for domain in _DOMAINS],
            quiet,
        )


def _study(out: Path, start: str, domain: str) -> Path:
    return out / (f"mft-{start}" if start == domain else f"mft-{start}-{domain}")


def _finetune(name: str, base: Path, data: Path, out: Path, quiet: bool) -> None:
    """Train on few rows until they are known by heart, unless that is done."""
    from deltalens.io.checkpoint import open_checkpoint
    from deltalens.io.records import load_training

    ft = out / f"ft-{name}"
    done = (ft / "config.json").exists()
    if done and load_training(ft).spec.get("model") == open_checkpoint(base).identity:
        return
    shutil.rmtree(ft, ignore_errors=True)
    say(quiet, _TRAIN.format(name, base, data, ft))
    train(method="sft", model=str(base), data=data, out=ft, quiet=quiet, **_FINETUNE)


def _tables(studies: list[Path], mixed: list[Path], quiet: bool) -> None:
    """Tables 1 and 5 and Figure 2 take all domains; they lie in the first one's study. What starts
    from the mixture is Table 1's lower half."""
    from deltalens.figures import draw_figure

    pictures = draw_figure("mft-tab1", studies, mixed=mixed)
    for name in ("mft-tab5", "mft-fig2"):
        pictures += draw_figure(name, studies)
    for picture in pictures:
        if picture.suffix in (".png", ".md"):
            say(quiet, f"picture: {picture}")


_TRAIN = (
    "\nFine-tune on few rows of {}, again and again:\n$ deltalens train sft {} --data {} -o {}\n"
)
_COMPARE = (
    "\nFrom the fine-tune on {}, go on with {}: do masks beat more training?\n"
    "$ deltalens compare {} {} --base {} --data {} -o {} ...\n"
)
_LAYERS = "\nWhich blocks are best masked?\n$ deltalens sweep layers mft ... --group 1 -o {}\n"
_RATIOS = "\nHow much of them?\n$ deltalens sweep mask-ratio mft ... -o {}\n"
_PARTS = "\nOn how much data?\n$ deltalens sweep data-ratio mft ... -o {}\n"
