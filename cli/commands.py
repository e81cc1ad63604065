"""Every command: its function, an example to copy, and what Ctrl-C leaves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated

import typer

from deltalens.api import deltas, records, reporting, salience, studies, sweeps, training
from deltalens.cli import running, showing
from deltalens.cli.generate import Command, setting_parameters
from deltalens.training.methods import method_class, trainable

__all__ = ["COMMANDS", "SWEEPS", "flag", "train_command", "train_commands"]

_GOES_ON = "the same command goes on"
_CELLS = f"stopped; finished cells are kept in {{out}}, {_GOES_ON}"
_TRAININGS = f"stopped; finished trainings are kept in {{out}}, {_GOES_ON}"
_DATA = "--train-data train.jsonl --eval-data test.jsonl"


def flag(name: str, about: str, *flags: str) -> inspect.Parameter:
    """Make a flag of the command line alone.

    Args:
        name: of the parameter.
        about: its help text.
        flags: spellings beside `--the-name`.

    Returns:
        The parameter, as typer takes it.
    """
    option = typer.Option(*flags, f"--{name.replace('_', '-')}", help=about)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[bool, option], default=False
    )


COMMANDS = (
    Command(
        name="drop-study",
        function=studies.drop_study,
        run=running.run_study,
        examples=(
            "deltalens drop-study ft/ base/ -o study/",
            "deltalens drop-study ft/ base/ --data test.jsonl --rates 0:1:0.1 -o study/",
        ),
        interrupted=_CELLS,
        plans=True,
    ),
    Command(
        name="inspect",
        function=deltas.inspect,
        run=running.run_inspect,
        examples=("deltalens inspect ft/ base/ -o anatomy/",),
        extra=(flag("tensors", "A line for every tensor, too."),),
    ),
    Command(
        name="drop",
        function=deltas.drop,
        run=running.run_drop,
        examples=("deltalens drop ft/ base/ --strategy trivial --rate 0.7 -o ft-dropped/",),
    ),
    Command(
        name="plot",
        function=records.plot,
        run=showing.run_plot,
        examples=("deltalens plot study/",),
        quiets=False,
    ),
    Command(
        name="figures",
        function=records.list_figures,
        run=showing.run_figures,
        examples=("deltalens figures",),
        quiets=False,
    ),
    Command(
        name="figure",
        function=records.draw_figure,
        run=showing.run_figure,
        examples=(
            "deltalens figure gmt-fig3 study/ -o drops.pdf",
            "deltalens figure mft-tab1 maths/ code/ --mixed mixed/ -o table.tex",
        ),
        quiets=False,
    ),
    Command(
        name="monitor",
        function=records.monitor,
        run=showing.run_monitor,
        examples=("deltalens monitor runs/sft/ --follow",),
        interrupted="stopped",
        extra=(flag("follow", "Look again every 2 seconds, until Ctrl-C."),),
    ),
    Command(
        name="report",
        function=reporting.report,
        run=showing.run_report,
        examples=(
            "deltalens report study/ runs/sft/ -o report.html",
            "deltalens report results/ --title 'Which weights carry it?' -o report.html",
        ),
    ),
    Command(
        name="compare",
        function=sweeps.compare,
        run=running.run_study,
        examples=(f"deltalens compare mft,sft,l1-mask ft/ {_DATA} -o study/",),
        interrupted=_TRAININGS,
        plans=True,
    ),
    Command(
        name="efficiency",
        function=training.efficiency,
        run=running.run_study,
        examples=("deltalens efficiency gmt,random-mask base/ --train-data train.jsonl -o costs/",),
        interrupted="stopped; finished blocks are kept in {out}",
        plans=True,
    ),
    Command(
        name="salience",
        function=salience.salience_study,
        run=running.run_study,
        examples=(
            "deltalens salience base/ --data train.jsonl -o study/",
            "deltalens salience base/ --data train.jsonl --metrics gradient,fisher --against ft/ "
            "-o study/",
        ),
        interrupted=f"stopped; finished masks and comparisons are kept in {{out}}, {_GOES_ON}",
        plans=True,
    ),
    Command(
        name="landscape",
        function=studies.scan_landscape,
        run=running.run_landscape,
        examples=(
            "deltalens landscape ft/ continued/ mft/ --data test.jsonl -o study/",
            "deltalens landscape ft/ other/ --data test.jsonl --grid 51 -o line/",
            "deltalens landscape ft/ --plane hessian --data test.jsonl --limit 64 -o sharpness/",
        ),
        interrupted=f"stopped; finished points are kept in {{out}}, {_GOES_ON}",
        plans=True,
    ),
    Command(
        name="evaluate",
        function=studies.evaluate,
        run=running.run_study,
        examples=(
            "deltalens evaluate base/ ft/ --data test.jsonl -o scores/",
            "deltalens evaluate runs/a/checkpoint-* --data test.jsonl -o steps/",
        ),
        interrupted=f"stopped; finished models are kept in {{out}}, {_GOES_ON}",
        plans=True,
    ),
    Command(
        name="methods",
        function=records.list_methods,
        run=showing.run_methods,
        examples=("deltalens methods",),
        quiets=False,
    ),
    Command(
        name="env",
        function=records.show_environment,
        run=showing.run_environment,
        examples=("deltalens env",),
        quiets=False,
    ),
)
"""All but `train`, the sweeps and the demos."""
SWEEPS = (
    Command(
        name="mask-ratio",
        function=sweeps.sweep_mask_ratio,
        run=running.run_study,
        examples=(
            f"deltalens sweep mask-ratio gmt:scope=global,random-mask base/ {_DATA} -o study/",
            f"deltalens sweep mask-ratio mft ft/ {_DATA} -o study/",
        ),
        interrupted=_TRAININGS,
        plans=True,
    ),
    Command(
        name="data-ratio",
        function=sweeps.sweep_data_ratio,
        run=running.run_study,
        examples=(f"deltalens sweep data-ratio gmt base/ {_DATA} -o study/",),
        interrupted=_TRAININGS,
        plans=True,
    ),
    Command(
        name="layers",
        function=sweeps.sweep_layers,
        run=running.run_study,
        examples=(f"deltalens sweep layers mft ft/ --group-sizes 4 {_DATA} -o study/",),
        interrupted=_TRAININGS,
        plans=True,
    ),
    Command(
        name="density",
        function=sweeps.sweep_density,
        run=running.run_study,
        examples=(
            f"deltalens sweep density speft,lora:lora-alpha=rank,pissa base/ {_DATA} -o study/",
        ),
        interrupted=_TRAININGS,
        plans=True,
    ),
    Command(
        name="masks",
        function=sweeps.sweep_masks,
        run=running.run_study,
        examples=(f"deltalens sweep masks speft base/ --refresh-every 100 {_DATA} -o study/",),
        interrupted=_TRAININGS,
        plans=True,
    ),
    Command(
        name="layers-drop",
        function=studies.sweep_layers_drop,
        run=running.run_study,
        examples=(
            "deltalens sweep layers-drop ft/ base/ --data test.jsonl --group-sizes 1,4 -o study/",
        ),
        interrupted=_CELLS,
        plans=True,
    ),
)
_TRAIN_EXAMPLES = {
    "gmt": "base/ --train-data train.jsonl --mask-ratio 0.2 -o gmt/",
    "mft": "ft/ --train-data train.jsonl --blocks 4-7 --mask-ratio 0.1 -o mft/",
}


def train_commands() -> Iterator[str]:
    """The methods that `train` has a command for.

    Returns:
        Their names.
    """
    return trainable()


def train_command(method: str) -> Command:
    """The command that trains by a method.

    Args:
        method: its name.

    Returns:
        A command with the method's own settings as options, and those of every training.

    Raises:
        DeltaLensError: a package's method cannot be loaded.
    """
    kind = method_class(method)
    example = _TRAIN_EXAMPLES.get(method, f"base/ --train-data train.jsonl -o {method}/")
    return Command(
        name=method,
        function=training.train,
        run=running.run_train,
        examples=(f"deltalens train {method} {example}",),
        interrupted="stopped; --resume goes on from {out}'s last checkpoint",
        about=f"{kind.facts.about or (kind.__doc__ or method).splitlines()[0]}\n\n"
        "AdamW, cosine after 3 % warm-up, loss on the completion. Ctrl-C writes a checkpoint, and "
        "--resume goes on from the last one, bit for bit. Needs the extra [train].",
        fixed={"method": method},
        more=setting_parameters(kind),
        more_as="settings",
        plans=True,
    )
