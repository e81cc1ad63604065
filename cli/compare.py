"""`deltalens compare`: one finished model, several ways to go on."""

from __future__ import annotations

from typing import Annotated

import typer

from deltalens.cli.sweeping import Sweep, split, takes_sweep


@takes_sweep
def compare(
    methods: Annotated[
        str,
        typer.Argument(
            metavar="METHODS",
            help="Of mft, sft, lora, random-mask-weights and l1-mask, and base; with commas.",
        ),
    ],
    sweep: Sweep,
    base: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="What MODEL was tuned from; measured as `base`."),
    ] = None,
) -> None:
    """Compare ways to go on from a finished model: masks, more training, LoRA (MFT, Tables 1, 2).

    sft goes on fine-tuning with a fresh optimizer and schedule. --eval-every draws performance over
    steps, --choose-on picks each training's best moment on rows of its own.

    \b
    Example:
    deltalens compare mft,sft,l1-mask ft/ --data train.jsonl --eval-data test.jsonl -o study/
    """
    from deltalens.io.locate import locate
    from deltalens.studies.mft_sweeps import compare as run
    from deltalens.studies.sweep_summary import summarise_sweep

    names = [*(["base"] if base else []), *split(methods)]
    sweep.run(
        names,
        lambda source, asked, watch: run(
            list(dict.fromkeys(names)),
            source,
            sweep.out,
            asked,
            base=locate(base) if base else None,
            watch=watch,
            **sweep.how,
        ),
        summarise_sweep,
    )
