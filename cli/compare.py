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
            help="From MODEL: mft, sft, lora-on-ft, random-mask-weights, l1-mask; from BASE: lora, "
            "lora-continued; with commas.",
        ),
    ],
    sweep: Sweep,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="What MODEL was tuned from; measured as `base`, and where LoRA starts.",
        ),
    ] = None,
    complement: Annotated[
        bool,
        typer.Option(
            "--complement",
            help="Beside random-mask-weights and l1-mask, those that remove 1 - ratio.",
        ),
    ] = False,
) -> None:
    """Compare ways to go on from a finished model: masks, more training, LoRA (MFT, Tables 1, 2).

    sft goes on fine-tuning with a fresh optimizer and schedule; lora trains adapters on BASE, as
    MFT's paper does, lora-continued goes on from their result, lora-on-ft trains them on MODEL.
    --eval-every draws performance over steps, --choose-on picks each training's best moment on rows
    of its own.

    \b
    Example:
    deltalens compare mft,sft,l1-mask ft/ --data train.jsonl --eval-data test.jsonl -o study/
    """
    from deltalens.io.locate import locate
    from deltalens.studies.mft_sweeps import compare as run
    from deltalens.studies.mft_sweeps import complements

    names = split(methods)
    sweep.run(
        names,
        lambda source, spec, watch: run(
            [*names, *(complements(names) if complement else [])],
            source,
            sweep.out,
            spec,
            base=locate(base) if base else None,
            watch=watch,
            **sweep.how,
        ),
    )
