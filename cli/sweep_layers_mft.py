"""`deltalens sweep layers mft`: which blocks are best masked."""

from __future__ import annotations

from typing import Annotated

import typer

from deltalens.cli.sweeping import Sweep, split, takes_sweep


@takes_sweep
def layers_mft(
    sweep: Sweep,
    group: Annotated[
        list[int] | None,
        typer.Option(help="Blocks in a group; repeatable; 4 if not given."),
    ] = None,
    also: Annotated[
        str, typer.Option(help="Beside mft: random-mask-weights, l1-mask, sft; with commas.")
    ] = "",
    data_ratio: Annotated[
        str, typer.Option(help="Train on this part of the rows, the first ones.")
    ] = "1",
) -> None:
    """Mask one group of consecutive blocks after the other, and draw MFT's Figures 3 and 7.

    One training per group and seed, beside the model as it is.

    \b
    Example:
    deltalens sweep layers mft ft/ --group 4 --data train.jsonl --eval-data test.jsonl -o s/
    """
    from deltalens.studies.mft_sweeps import sweep_layers

    names = ["mft", *split(also)]
    sweep.run(
        names,
        lambda source, spec, watch: sweep_layers(
            names,
            source,
            sweep.out,
            spec,
            sizes=group or (4,),
            data_ratio=data_ratio,
            watch=watch,
            **sweep.how,
        ),
        {"blocks": "--group"},
    )
