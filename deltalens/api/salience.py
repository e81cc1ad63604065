"""Which weights salience metrics choose: the study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack, cast

from deltalens.api.described import Opt, described
from deltalens.api.options import (
    DeviceMapOptions,
    EvalData,
    FieldOptions,
    Model,
    Names,
    StudyFolder,
    WhereOptions,
)
from deltalens.api.translate import device_map, field_names, paths

if TYPE_CHECKING:
    from deltalens.api.results import Study

__all__ = ["salience_study"]


class SalienceOptions(FieldOptions, WhereOptions, DeviceMapOptions, total=False):
    """What a salience study can be told beside its own settings."""

    limit: Annotated[
        int | None, Opt("Use the first N rows of each data set only.", minimum=1, common=True)
    ]
    fresh: Annotated[bool, Opt("Discard the study that the folder holds.", False, common=True)]
    watch: Annotated[Any, Opt("A `StudyWatch`, told of progress.", python_only=True)]


@described
def salience_study(
    model: Model,
    data: EvalData,
    out: StudyFolder,
    *,
    metrics: Annotated[
        Names, Opt("gradient,snip,fisher, ...; all.", metavar="NAMES", common=True)
    ] = "all",
    density: Annotated[
        str | float, Opt("Share of the targets' weights that a mask keeps.", common=True)
    ] = "0.005",
    scope: Annotated[
        str, Opt("What is ranked together.", metavar="tensor|layer|global", common=True)
    ] = "global",
    targets: Annotated[
        str | Sequence[str],
        Opt("Layers to rank.", metavar="attention|linear|NAMES", common=True),
    ] = "attention",
    against: Annotated[
        str | Path | None,
        Opt("Compare with what this fine-tune changed most.", metavar="FT", common=True),
    ] = None,
    steps: Annotated[int, Opt("Calibration batches.", minimum=1, common=True)] = 64,
    batch_size: Annotated[int, Opt("Rows in a calibration batch.", minimum=1, common=True)] = 16,
    max_length: Annotated[int | None, Opt("Longest row in tokens (the model's positions).")] = None,
    expectation: Annotated[
        str, Opt("Mean of gradients, or of metrics.", metavar="inside|outside")
    ] = "inside",
    sign: Annotated[int, Opt("GRaSP's: 1 or -1.")] = 1,
    hessian: Annotated[str, Opt("How GRaSP is computed.", metavar="exact|difference")] = "exact",
    seed: Annotated[int, Opt("Seed of the row order, ties, and random.")] = 0,
    **options: Unpack[SalienceOptions],
) -> Study:
    """Mask a model's weights by every salience metric, and compare the masks.

    Each metric keeps the same number of weights. The study says how far the metrics agree, where
    each puts its budget, whether the calibration data suffice, and, with `against`, how much of
    what a fine-tune changed most they would have found. The masks are files in the study's folder.
    The same call goes on where it stopped, and one with more metrics measures what is missing
    (SPEFT, Section 3.2).

    Args:
        model: a checkpoint folder or hub id.
        data: files of rows with `text`, `prompt` and `completion`, or `messages`, as the model
            would be trained on.
        out: the study's folder.
        metrics: `magnitude`, `gradient`, `snip`, `force`, `taylor-fo`, `synflow`, `grasp`,
            `fisher`, `random`; or `all`.
        density: the fraction of each ranked unit that a mask keeps, an exact decimal in (0, 1].
        scope: what is ranked together: `global`, `layer` or `tensor`.
        targets: `attention`, `linear` (every linear layer in a block), or the ends of layers'
            names.
        against: a fine-tune of the model.
        steps: calibration batches; the paper takes 64 of 16.
        batch_size: rows in one.
        max_length: longer rows are left out, longer texts cut.
        expectation: `inside` takes a metric of the mean gradient, `outside` the mean over batches
            of the metric.
        sign: 1 keeps the top of GRaSP as the paper has it; -1 that of its opposite.
        hessian: `exact`, or `difference` of gradients, which is faster and needs fp32.
        seed: decides the order of the rows, ties, and the random mask.

    Returns:
        The study; its `cells` have the columns salience, part, of, metric, value, stderr and n.

    Raises:
        DeltaLensError: bad input, as far as it can be known before the model is loaded.

    Example:
        >>> study = deltalens.salience_study(
        ...     "base", "train.jsonl", "new-salience", metrics="gradient,magnitude", steps=4
        ... )
        >>> sorted(study.cells["part"].unique().tolist())
        ['agreement', 'budget', 'sample']
    """
    from deltalens.api.results import Study
    from deltalens.io.locate import locate
    from deltalens.studies.salience.study import salience_study as run

    trust = bool(options.get("trust_remote_code"))
    record = run(
        locate(str(model), trust),
        paths(data),
        out,
        metrics=metrics,
        density=density,
        scope=scope,
        targets=targets,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        expectation=expectation,
        sign=sign,
        hessian=cast(Any, hessian),
        seed=seed,
        against=None if against is None else locate(str(against), trust),
        fields=field_names(options),
        limit=options.get("limit"),
        device=options.get("device") or "auto",
        device_map=device_map(options.get("device_map")),
        dtype=options.get("dtype") or "auto",
        trust_remote_code=trust,
        fresh=bool(options.get("fresh")),
        watch=options.get("watch"),
    )
    return Study.of(record)
