"""`deltalens drop`: write the checkpoint with part of its delta put back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltalens.cli import console
from deltalens.cli.options import (
    Base,
    Debug,
    Exclude,
    Ft,
    Include,
    Json,
    Merge,
    Of,
    Out,
    Quiet,
    Rescale,
    Scope,
    Seed,
    Strict,
)


def drop(
    ft: Ft,
    base: Base,
    out: Out,
    strategy: Annotated[
        str, typer.Option(metavar="salient|trivial|random", help="Which entries go first.")
    ] = "trivial",
    rate: Annotated[str, typer.Option(help="Fraction of entries put back, 0 to 1.")] = "0.7",
    scope: Scope = "tensor",
    rescale: Rescale = False,
    of: Of = "all",
    seed: Seed = 0,
    include: Include = None,
    exclude: Exclude = None,
    strict: Strict = False,
    merge_adapter: Merge = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put part of a fine-tune's delta back to the base, and write the checkpoint.

    Exactly round(rate * n) entries of each tensor (or block, or the whole model: --scope) become
    bitwise the base; all others stay bitwise the fine-tune. Needs neither data nor a GPU, and only
    a few megabytes of memory beside Python's own. OUT appears whole or not at all.

    \b
    Example:
    deltalens drop ft/ base/ --strategy trivial --rate 0.7 -o ft-dropped/
    """
    with console.command(debug):
        from deltalens.io.folders import check_new_folder
        from deltalens.io.locate import located
        from deltalens.studies.drop import drop as run

        changed_only = console.changed_only(of)
        check_new_folder(out, [Path(given) for given in (ft, base)])
        with (
            located(ft, base, merge_adapter) as (ft_path, base_path),
            console.meter(quiet or as_json) as meter,
        ):
            meter.stage("dropping", None)
            result = run(
                ft_path,
                base_path,
                out,
                strategy=strategy,
                rate=rate,
                scope=scope,
                rescale=rescale,
                changed_only=changed_only,
                seed=seed,
                include=include,
                exclude=exclude,
                strict=strict,
                progress=meter.at,
            )
        if as_json:
            console.print_json(
                {
                    "out": str(result.out),
                    "entries": result.entries,
                    "put_back": result.put_back,
                    "unchanged": result.unchanged,
                    "notes": result.pairing.notes,
                    "kept": result.pairing.kept,
                }
            )
        elif not quiet:
            share = 100 * result.put_back / result.entries
            console.say(
                f"{result.put_back:,} of {result.entries:,} entries ({share:.2f} %) put back to "
                f"the base, {strategy} first"
            )
            if result.unchanged is not None:
                console.say(
                    f"{100 * result.unchanged / result.entries:.2f} % had not changed at all"
                )
            for note in console.notes(result.pairing):
                console.say(f"note: {note}")
            console.say(f"written: {result.out}")
