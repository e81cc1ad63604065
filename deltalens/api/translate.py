"""From the options of the public functions to what the studies behind them take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import DeltaLensError

if TYPE_CHECKING:
    from deltalens.studies.executors import Execution
    from deltalens.studies.measuring import Measuring
    from deltalens.studies.training_plans import TrainingData
    from deltalens.training.methods import Method
    from deltalens.training.spec import TrainingSpec

__all__ = [
    "check_before",
    "checked_pair",
    "device_map",
    "execution",
    "field_names",
    "learning_rates",
    "measuring",
    "names",
    "numbers",
    "paths",
    "training",
    "training_data",
]

_FIELDS = ("prompt", "completion", "messages", "text", "label", "sentence1", "sentence2")
_EXECUTION = ("jobs", "executor", "address", "gpus_per_worker", "cpus_per_worker")
_SPEC = (
    *("objective", "epochs", "steps", "batch_size", "accumulate", "accumulate_mean"),
    *("learning_rate", "weight_decay", "warmup", "max_length", "loss_on", "gradient_checkpointing"),
)
"""Options of a training that are fields of its specification."""


def names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names, as text with commas or as a sequence.

    Args:
        given: by the caller.

    Returns:
        The names.
    """
    parts = given.split(",") if isinstance(given, str) else given or ()
    return tuple(part.strip() for part in parts if part.strip())


def numbers(given: str | int | Sequence[int], what: str) -> tuple[int, ...]:
    """Whole numbers, as text with commas or as a sequence.

    Args:
        given: by the caller.
        what: the argument's name, for messages.

    Returns:
        The numbers.

    Raises:
        DeltaLensError: one is no whole number above 0.
    """
    parts = given.split(",") if isinstance(given, str) else given
    try:
        found = tuple(int(part) for part in ([parts] if isinstance(parts, int) else parts))
    except ValueError as error:
        raise DeltaLensError(f"{what} {given!r}: whole numbers, with commas") from error
    if not found or min(found) < 1:
        raise DeltaLensError(f"{what} {given!r}: whole numbers above 0")
    return found


def paths(given: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    """One file or several, as a list.

    Args:
        given: by the caller.

    Returns:
        The files.
    """
    return [given] if isinstance(given, str | Path) else [*(given or ())]


def field_names(options: Mapping[str, Any]) -> dict[str, str]:
    """What the data files call their fields, where it is not as we do.

    Args:
        options: of the caller; `prompt_field` and its likes are looked at.

    Returns:
        Our name of a field -> theirs.
    """
    given = {name: options.get(f"{name}_field") for name in _FIELDS}
    return {name: field for name, field in given.items() if field is not None}


def device_map(
    given: str | Mapping[str, str | int] | Sequence[str] | None,
) -> str | dict[str, str | int] | None:
    """A device map, as transformers takes it.

    Args:
        given: a name; module -> device; or one of them as it is typed: ["auto"],
            ["model.layers.0=cuda:1", ...].

    Returns:
        A name, or module -> device, with devices of the CUDA kind by their numbers as typed.

    Raises:
        DeltaLensError: neither a name nor devices of modules.
    """
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        return dict(given)
    parts = [*given]
    if len(parts) == 1 and "=" not in parts[0]:
        return parts[0]
    pairs = [part.partition("=") for part in parts]
    if bad := [part for part, (_, sign, device) in zip(parts, pairs, strict=True) if not device]:
        raise DeltaLensError(f"device_map {bad[0]!r}: one name, or MODULE=DEVICE for each module")
    return {module: int(device) if device.isdecimal() else device for module, _, device in pairs}


def measuring(options: Mapping[str, Any]) -> Measuring:
    """Collect the options of a study that measures models.

    Args:
        options: of the caller.

    Returns:
        What the study's function takes; options that the caller left out have its defaults.
    """
    from deltalens.studies.measuring import Measuring

    ours = {f"{name}_field" for name in _FIELDS} | {"fidelity_tokens", "merge_adapter"}
    ours |= {*_EXECUTION, "devices"}
    taken: dict[str, Any] = {name: value for name, value in options.items() if name not in ours}
    if taken.get("watch") is None:
        taken.pop("watch", None)
    taken["device_map"] = device_map(options.get("device_map"))
    taken["data"] = paths(options.get("data"))
    taken["metrics"] = names(options.get("metrics"))
    taken["tasks"] = names(options.get("tasks"))
    taken["fields"] = field_names(options)
    taken["execution"] = by = execution(options)
    taken["device"] = by.device(options.get("device") or "auto")
    if options.get("fidelity_tokens") is not None:
        from deltalens.scoring.texts import FidelityTexts

        taken["fidelity"] = FidelityTexts(new_tokens=options["fidelity_tokens"])
    return Measuring(**taken)


def execution(options: Mapping[str, Any]) -> Execution:
    """By what the cells of a study are measured.

    Args:
        options: of the caller.

    Returns:
        The executor, with its options; several devices are as many jobs.

    Raises:
        DeltaLensError: the options do not go together.
    """
    from deltalens.studies.executors import Execution

    given = {name: options[name] for name in _EXECUTION if options.get(name) is not None}
    devices = names(options.get("devices"))
    return Execution(**{"jobs": len(devices) or 1, **given, "devices": devices})


def check_before(out: str | Path, models: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Check the folder and the rows before anything is fetched or merged."""
    from deltalens.io.records import check_study_folder
    from deltalens.scoring.rows import read_files

    check_study_folder(
        Path(out), [Path(model) for model in models if isinstance(model, str | Path)]
    )
    read_files(paths(options.get("data")), options.get("limit"), field_names(options))


@contextmanager
def checked_pair(
    ft: str | Path, base: str | Path, out: str | Path, options: Mapping[str, Any]
) -> Iterator[tuple[Path, Path]]:
    """A fine-tune and its base as local folders; an adapter merged, for as long as the block.

    Args:
        ft, base: as the caller gave them.
        out: the study's folder; it and the rows are checked before anything is fetched.
        options: of the caller.

    Yields:
        Both folders.

    Raises:
        DeltaLensError: bad input.
    """
    from deltalens.io.locate import located

    check_before(out, [ft, base], options)
    merge = bool(options.get("merge_adapter"))
    with located(str(ft), str(base), merge, bool(options.get("trust_remote_code"))) as pair:
        yield pair


def learning_rates(given: str | float | Sequence[float] | None) -> tuple[float, ...]:
    """Peak learning rates, as text with commas, a number or a sequence.

    Args:
        given: by the caller.

    Returns:
        Each rate once; () if none is given.

    Raises:
        DeltaLensError: one is no number above 0.
    """
    if given is None:
        return ()
    parts: Sequence[Any] = (
        names(given)
        if isinstance(given, str)
        else ([given] if isinstance(given, int | float) else given)
    )
    try:
        rates = tuple(dict.fromkeys(float(part) for part in parts))
    except (TypeError, ValueError) as error:
        raise DeltaLensError(f"learning_rate {given!r}: numbers, with commas") from error
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise DeltaLensError(f"learning_rate {given}: must be above 0")
    return rates


def training(
    methods: Any,
    options: Mapping[str, Any],
    settings: Mapping[str, Any] | Sequence[str] = (),
    swept: Collection[str] = (),
) -> tuple[list[Method], TrainingSpec]:
    """Methods with their settings, and what their trainings share.

    Args:
        methods: as the caller gave them.
        options: of the caller.
        settings: for all methods that have them.
        swept: settings that a study varies: a recipe says nothing about them.

    Returns:
        The methods, and a specification without one; of a grid of learning rates it has none.

    Raises:
        DeltaLensError: a method, setting, recipe or configuration that does not exist.
    """
    from deltalens.training.methods import read_methods
    from deltalens.training.paper import paper_settings
    from deltalens.training.recipe import read_recipe
    from deltalens.training.spec import TrainingSpec

    given = {name: options[name] for name in _SPEC if options.get(name) is not None}
    rates = learning_rates(given.pop("learning_rate", None))
    if len(rates) == 1:
        given["learning_rate"] = rates[0]
    objective = given.get("objective", "sft")
    config = options.get("config")
    recipe = read_recipe(Path(config) if config is not None else None, objective)
    chosen = read_methods(methods, settings)
    if options.get("recipe") is not None:
        paper = paper_settings(options["recipe"], [method.name for method in chosen])
        own = {name: value for name, value in paper.own.items() if name not in swept}
        chosen = read_methods(methods, settings, own)
        given = {**paper.shared, **given}
        if len(rates) > 1:
            del given["learning_rate"]
        recipe = {**paper.shared["recipe"], **recipe}
    return chosen, TrainingSpec(**{**given, "recipe": recipe})


def training_data(
    model: str | Path, train_data: str | Path, options: Mapping[str, Any]
) -> TrainingData:
    """The model and the rows of a study of trainings.

    Args:
        model, train_data: as the caller gave them.
        options: of the caller.

    Returns:
        The model as a local folder, and the rows.

    Raises:
        DeltaLensError: the model cannot be found, there is nothing to measure on, or options of
            tasks are given without any.
    """
    from deltalens.io.locate import locate
    from deltalens.scoring.tasks.scoring import StandardTasks
    from deltalens.scoring.tasks.selection import TaskSelection
    from deltalens.studies.training_plans import TrainingData

    trust = bool(options.get("trust_remote_code"))
    chosen = names(options.get("tasks"))
    of_tasks = ("task_limit", "task_batch_size")
    useless = [name for name in of_tasks if options.get(name) is not None and not chosen]
    if useless:
        raise DeltaLensError(f"{', '.join(useless)}: of no use without `tasks`")
    tasks = TaskSelection.of(
        chosen,
        include_path=options.get("include_path"),
        limit=options.get("task_limit"),
        num_fewshot=options.get("num_fewshot"),
        batch_size=options.get("task_batch_size"),
        apply_chat_template=bool(options.get("apply_chat_template")),
        confirm_run_unsafe_code=bool(options.get("confirm_run_unsafe_code")),
    )
    return TrainingData(
        model=locate(str(model), trust),
        data=train_data,
        eval_data=paths(options.get("eval_data")),
        tasks=StandardTasks(tasks) if tasks is not None else None,
        fields=field_names(options),
        limit=options.get("train_limit"),
        choose_on=options.get("choose_on"),
        eval_every=options.get("eval_every"),
        device=execution(options).device(options.get("device") or "auto"),
        dtype=options.get("dtype") or "auto",
        trust_remote_code=trust,
    )
