"""`deltalens sweep`: one training after another, over one setting."""

from __future__ import annotations

from typing import Annotated

import typer

from deltalens.cli import sweep_layers, sweep_layers_mft
from deltalens.cli.sweeping import Sweep, split, takes_sweep

app = typer.Typer(help="Train over and over along one setting, and draw what comes of it.")
app.add_typer(sweep_layers.app, name="layers")
sweep_layers.app.command("mft")(sweep_layers_mft.layers_mft)


@app.callback()
def root() -> None:
    """Train over and over along one setting, and draw what comes of it."""


@app.command("mask-ratio")
@takes_sweep
def mask_ratio(
    methods: Annotated[
        str,
        typer.Argument(
            metavar="METHODS",
            help="Of gmt, random-mask, one-off-drop and hft, or of mft, random-mask-weights and "
            "l1-mask; with commas.",
        ),
    ],
    sweep: Sweep,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="start:stop:step and single ones; 0 is always among them. By default the papers' "
            "own: 0:0.9:0.1,0.95,0.99 and 0.02,0.05,0.1,0.2,0.3,0.4."
        ),
    ] = None,
) -> None:
    """Train at growing mask ratios, and draw GMT's Figure 2 or MFT's Figure 4.

    Beside plain fine-tuning; where weights are removed, beside the model as it is, too. The same
    command again goes on where it stopped.

    \b
    Examples:
    deltalens sweep mask-ratio gmt base/ --data train.jsonl --eval-data test.jsonl -o study/
    deltalens sweep mask-ratio mft ft/ --data train.jsonl --eval-data test.jsonl -o study/
    """
    from deltalens.studies.mask_ratio import SWEPT, sweep_mask_ratio

    names = split(methods)
    sweep.run(
        names,
        lambda source, spec, watch: sweep_mask_ratio(
            names, source, sweep.out, spec, ratios=ratios, watch=watch, **sweep.how
        ),
        dict.fromkeys(SWEPT, "--ratios"),
    )


@app.command("data-ratio")
@takes_sweep
def data_ratio(
    methods: Annotated[
        str,
        typer.Argument(
            metavar="METHODS",
            help="Of mft, sft and lora, or of gmt, random-mask and hft, beside which sft stands; "
            "with commas.",
        ),
    ],
    sweep: Sweep,
    ratios: Annotated[
        str, typer.Option(help="Parts of the rows: start:stop:step and single ones.")
    ] = "0.1,0.2,0.5,1",
) -> None:
    """Train on growing parts of the data, and draw MFT's Figure 5; or masked gradients beside plain
    fine-tuning, which GMT's authors leave open.

    \b
    Examples:
    deltalens sweep data-ratio gmt base/ --data train.jsonl --eval-data test.jsonl -o study/
    deltalens sweep data-ratio mft ft/ --data train.jsonl --eval-data test.jsonl -o study/
    """
    from deltalens.studies.mft_sweeps import sweep_data_ratio

    names = split(methods)
    sweep.run(
        names,
        lambda source, spec, watch: sweep_data_ratio(
            names, source, sweep.out, spec, ratios=ratios, watch=watch, **sweep.how
        ),
    )
