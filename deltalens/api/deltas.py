"""One delta at a time: what it looks like, and a checkpoint without part of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from deltalens.api.described import Opt, described
from deltalens.api.options import Base, Ft, NewFolder, TensorOptions

if TYPE_CHECKING:
    from deltalens.api.results import Inspection
    from deltalens.studies.drop import DropResult

__all__ = ["drop", "inspect"]

_Merge = Annotated[bool, Opt("FT is a PEFT adapter: merge it first.")]
_Trust = Annotated[bool, Opt("Run code that BASE brings, to merge an adapter.")]
_Progress = Annotated[Any, Opt("Called with entries done, and entries in all.", python_only=True)]


@described
def inspect(
    ft: Ft,
    base: Base,
    out: Annotated[
        Any, Opt("Folder for table and picture.", metavar="OUT", flags=("-o",), common=True)
    ] = None,
    *,
    merge_adapter: _Merge = False,
    trust_remote_code: _Trust = False,
    progress: _Progress = None,
    **options: Unpack[TensorOptions],
) -> Inspection:
    """Describe a delta: how large, how much of it is exactly zero, where its energy lies.

    Streams both checkpoints once; needs neither data nor the memory for a model.

    Args:
        ft, base: checkpoints: folders, files, or hub ids.
        out: a folder for the records; None: nothing is written.
        merge_adapter: `ft` is a PEFT adapter; merge it into `base` in a temporary folder first.
        trust_remote_code: run model code that the base brings, where an adapter is merged.
        progress: called with entries done, and entries in all.

    Returns:
        Its `groups` hold a row for the whole delta, each kind of projection, layer and tensor.

    Raises:
        DeltaLensError: the checkpoints cannot be paired.

    Example:
        >>> anatomy = deltalens.inspect("ft", "base")
        >>> anatomy.groups[0].level, anatomy.groups[0].entries > 0
        ('overall', True)
    """
    from deltalens.api.results import Inspection
    from deltalens.io.locate import located
    from deltalens.studies.inspect import inspect as run

    with located(str(ft), str(base), merge_adapter, trust_remote_code) as (ft_path, base_path):
        found = run(ft_path, base_path, out, **_told(progress), **options)
    folder = None if out is None else Path(out)
    return Inspection(folder, found.pairing, found.groups, found.histograms)


@described
def drop(
    ft: Ft,
    base: Base,
    out: NewFolder,
    *,
    strategy: Annotated[
        str, Opt("Which entries go first.", metavar="salient|trivial|random", common=True)
    ] = "trivial",
    rate: Annotated[
        str | float, Opt("Fraction put back to the base.", metavar="RATE", common=True)
    ] = "0.7",
    scope: Annotated[
        str, Opt("What is ranked together.", metavar="tensor|layer|global", common=True)
    ] = "tensor",
    rescale: Annotated[bool, Opt("Divide what is kept by 1 - rate (DARE).", common=True)] = False,
    changed_only: Annotated[
        bool, Opt("Count the rate over entries that changed.", common=True)
    ] = False,
    seed: Annotated[int, Opt("Seed of the random order, and of ties.", common=True)] = 0,
    merge_adapter: _Merge = False,
    trust_remote_code: _Trust = False,
    progress: _Progress = None,
    **options: Unpack[TensorOptions],
) -> DropResult:
    """Put part of a fine-tune's delta back to the base, and write the checkpoint.

    `trivial` is GMT's One-off Drop; `random` with `rescale` is DARE (Yu et al. 2024). Exactly
    round(rate * n) entries of every unit become bitwise the base, the others stay bitwise the
    fine-tune. Memory: a few chunks, whatever the size of the models.

    Args:
        ft, base: checkpoints: folders, files, or hub ids.
        out: a folder that does not exist, or is empty; it appears whole or not at all.
        strategy: which entries go back first: `salient` (largest |delta|), `trivial` (smallest), or
            `random`.
        rate: the drop rate, an exact decimal in [0, 1].
        scope: what is ranked together: `tensor`, `layer` or `global`.
        rescale: divide the deltas that stay by 1 - rate.
        changed_only: count the rate over the entries that differ from the base.
        seed: of the random order, and of the one that settles ties.
        merge_adapter: `ft` is a PEFT adapter; merge it into `base` in a temporary folder first.
        trust_remote_code: run model code that the base brings, where an adapter is merged.
        progress: called with entries done, and entries in all.

    Returns:
        How many entries took part, and how many were put back.

    Raises:
        DeltaLensError: bad input, before anything is written.

    Example:
        >>> result = deltalens.drop("ft", "base", "new-dropped", strategy="random", rate="0.9")
        >>> abs(result.put_back / result.entries - 0.9) < 0.1
        True
    """
    from deltalens.io.locate import located
    from deltalens.studies.drop import drop as run

    with located(str(ft), str(base), merge_adapter, trust_remote_code) as (ft_path, base_path):
        return run(
            ft_path,
            base_path,
            out,
            strategy=strategy,
            rate=rate,
            scope=scope,
            rescale=rescale,
            changed_only=changed_only,
            seed=seed,
            progress=progress,
            **options,
        )


def _told(progress: Any) -> dict[str, Any]:
    return {} if progress is None else {"progress": progress}
