"""The command that makes a study, a training or a run again, from its records."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.api import deltas, salience, studies, sweeps, training
from deltalens.api.described import Arg, parameters_of
from deltalens.catalog.methods import method_name
from deltalens.catalog.studies import study_name
from deltalens.catalog.variants import variant_of
from deltalens.errors import DeltaLensError, Lines
from deltalens.io.records import RunRecord, StudyRecord, TrainingRecord
from deltalens.report_page import Repeat
from deltalens.training.methods import method_class

__all__ = ["repeat_of"]

Record = StudyRecord | RunRecord | TrainingRecord
_COMMANDS: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "drop-study": ("drop-study", studies.drop_study),
    "inspect": ("inspect", deltas.inspect),
    "layer-sweep-drop": ("sweep layers-drop", studies.sweep_layers_drop),
    "mask-ratio-sweep": ("sweep mask-ratio", sweeps.sweep_mask_ratio),
    "data-ratio-sweep": ("sweep data-ratio", sweeps.sweep_data_ratio),
    "layer-sweep": ("sweep layers", sweeps.sweep_layers),
    "density-sweep": ("sweep density", sweeps.sweep_density),
    "mask-sweep": ("sweep masks", sweeps.sweep_masks),
    "comparison": ("compare", sweeps.compare),
    "efficiency": ("efficiency", training.efficiency),
    "salience": ("salience", salience.salience_study),
    "evaluate": ("evaluate", studies.evaluate),
    "landscape": ("landscape", studies.scan_landscape),
}
"""Kind of study -> the words of its command, and the function that has its options."""
_RENAMED = {
    "layer-sweep-drop": {"groups": "group_sizes"},
    "mask-ratio-sweep": {"ratios": "mask_ratios"},
    "data-ratio-sweep": {"ratios": "data_ratios"},
    "layer-sweep": {"sizes": "group_sizes"},
    "mask-sweep": {"refreshes": "refresh_every"},
    "efficiency": {"steps_in_block": "block_steps"},
    "salience": {"salience": "metrics"},
    "landscape": {"range": "span", "normalise": "normalize"},
}
"""Kind -> name in its specification -> the option's."""
_INPUTS = {"ft", "base", "model", "models", "origin", "others", "methods", "method", "settings"}
_DATA = ("data", "eval_data", "choose_on")
_UNTYPED = {*_INPUTS, *_DATA, "train_data", "out", "tasks", "metric", "recipe", "against", "watch"}
"""What a specification has in another form than its option, or no option at all."""


@dataclass
class _Line:
    """A command that grows."""

    words: list[str]
    notes: list[str] = field(default_factory=list)

    def add(self, *words: str) -> None:
        self.words += words

    def done(self) -> Repeat:
        return Repeat(shlex.join(self.words), tuple(dict.fromkeys(self.notes)))


def repeat_of(record: Record) -> Repeat | None:
    """Type the command that makes a record again.

    Args:
        record: of a study, a training or a run.

    Returns:
        The command with every option that differs from its default, and what the records cannot
        tell: where data files lie, and what no command line can name. None of a kind of study that
        a package adds.
    """
    if isinstance(record, RunRecord):
        return _probe(record)
    if isinstance(record, TrainingRecord):
        return _training(record)
    name = study_name(record.spec)
    if name not in _COMMANDS:
        return None
    words, function = _COMMANDS[name]
    line = _Line(["deltalens", *words.split()])
    _add_models(line, name, record)
    _add_data(line, record.spec, parameters_of(function))
    _add_options(line, _options(name, record.spec), parameters_of(function))
    if record.spec.get("metric"):
        line.notes.append("It measured a metric of your own: call the function from Python.")
    line.add("-o", str(record.path))
    return line.done()


def _add_models(line: _Line, name: str, record: StudyRecord) -> None:
    """The arguments: methods and models, as far as the records know where they lie."""
    spec, facts = record.spec, record.facts
    if name in ("drop-study", "inspect", "layer-sweep-drop"):
        line.add(*(str(facts.get(key) or key.upper()) for key in ("ft", "base")))
        return
    if name == "evaluate":
        line.add(*map(str, spec.get("models", ())))
        return
    if name == "landscape":
        marked = [str(path) for path in facts.get("models", ())] or ["ORIGIN"]
        with_base = bool(spec.get("base")) and len(marked) > 1
        line.add(*(marked[:-1] if with_base else marked))
        line.add(*(["--base", marked[-1]] if with_base else []))
        return
    if name != "salience":
        line.add(",".join(_typed_methods(spec, line)))
    line.add(str(facts.get("model") or "MODEL"))
    if not facts.get("model"):
        line.notes.append("Put in the model for MODEL: the records have its fingerprint alone.")
    if name == "comparison" and _needs_base(spec):
        line.add("--base", "BASE")
        line.notes.append("Put in the base for BASE: the records have its fingerprint alone.")
    if name == "salience" and spec.get("against"):
        line.add("--against", "FT")
        line.notes.append("Put in the fine-tune for FT: the records have its fingerprint alone.")


def _needs_base(spec: Mapping[str, Any]) -> bool:
    settings = spec.get("settings") or {}
    return any("model" in own for own in settings.values())


def _typed_methods(spec: Mapping[str, Any], line: _Line) -> Iterator[str]:
    settings = spec.get("settings") or {}
    for label in map(str, spec.get("methods", ())):
        known = variant_of(label).settings
        own = _own_settings(method_name(label), settings.get(label) or {}, line)
        swept = {"mask_ratio", "refresh_every", "scope"} if "refreshes" in spec else {"mask_ratio"}
        left = swept if "ratios" in spec or "refreshes" in spec else set()
        more = {name: value for name, value in own.items() if name not in {*known, *left}}
        yield ":".join([label, *(f"{name.replace('_', '-')}={more[name]}" for name in more)])


def _own_settings(method: str, recorded: Mapping[str, Any], line: _Line) -> dict[str, str]:
    """A method's settings that differ from its defaults."""
    try:
        fields = method_class(method).own_settings()
    except DeltaLensError:
        if recorded:
            line.notes.append(f"The method {method!r} is not installed: its settings are left out.")
        return {}
    given = {name: recorded.get(name) for name in fields}
    return {
        name: _text(value)
        for name, value in given.items()
        if value is not None and _text(value) != _text(fields[name].default)
    }


def _add_data(line: _Line, spec: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    named = []
    for key in _DATA:
        value = spec.get(key)
        files: Sequence[Any] = [value] if value and _is_file(value) else value or ()
        for name, rows, digest in files:
            option = "train_data" if key == "data" and "train_data" in known else key
            if option in known:
                line.add(f"--{option.replace('_', '-')}", f"{name}.jsonl")
                named.append(f"{name} ({rows:,} rows, fingerprint {digest[:8]})")
    if named:
        line.notes.append(
            f"Put in the paths of the data, which the records have by name: {', '.join(named)}. "
            "Where rows were limited, give --limit or --train-limit as well."
        )
    tasks = spec.get("tasks")
    if tasks and "tasks" in known:
        names = [str(name) for name in tasks.get("tasks", tasks)]
        line.add("--tasks", ",".join(names))
        line.notes.append("Options of the standard tasks stand among the settings below.")
    if spec.get("recipe"):
        line.notes.append("It had further options of trl's configuration: give them as --config.")


def _options(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification by names of options."""
    renamed = _RENAMED.get(name, {})
    options = {renamed.get(key, key): value for key, value in spec.items() if key not in _UNTYPED}
    if name == "salience":
        options["metrics"] = spec.get("salience")
    if name == "landscape":
        options |= _plane(spec)
    if name == "mask-sweep":
        options["refresh_every"] = [steps for steps in spec.get("refreshes", ()) if steps]
    _without_useless_epochs(options)
    if spec.get("learning_rates"):
        options["learning_rate"] = spec["learning_rates"]
    if spec.get("fidelity"):
        options["fidelity_tokens"] = spec["fidelity"][1]
    return options


def _without_useless_epochs(options: dict[str, Any]) -> None:
    """Where the number of steps was given, epochs decided nothing."""
    if options.get("steps") is not None:
        options.pop("epochs", None)


def _plane(spec: Mapping[str, Any]) -> dict[str, Any]:
    span = spec.get("range")
    return {
        "grid": "x".join(map(str, spec["grid"])),
        "span": None if span is None else ",".join(f"{low}:{high}" for low, high in span),
        "normalize": spec.get("normalise") if spec["plane"] in ("random", "hessian") else None,
    }


def _add_options(line: _Line, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name, parameter in known.items():
        value = options.get(name)
        if name in _UNTYPED or value in (None, [], {}) or isinstance(parameter.said, Arg):
            continue
        default = parameter.default
        if _text(value) == _text(default):
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            line.add(flag)
        elif value is False:
            line.words += [f"--no-{name.replace('_', '-')}"] if default is True else []
        else:
            line.add(flag, _text(value))


def _training(record: TrainingRecord) -> Repeat:
    spec = record.spec
    method = str(spec.get("method", "METHOD"))
    line = _Line(["deltalens", "train", method, str(record.facts.get("model") or "MODEL")])
    known = parameters_of(training.train)
    for name, value in _own_settings(method, spec, line).items():
        line.add(f"--{name.replace('_', '-')}", value)
    _add_data(line, spec, known)
    probe = spec.get("probe")
    every = {"probe": True, "probe_every": probe.get("every")} if isinstance(probe, dict) else {}
    options = {**{name: value for name, value in spec.items() if name not in _UNTYPED}, **every}
    if not every:
        options.pop("probe", None)
    _without_useless_epochs(options)
    _add_options(line, options, known)
    line.add("-o", str(record.path))
    return line.done()


def _probe(record: RunRecord) -> Repeat:
    spec = record.spec
    names = ("every", "mask_ratios", "scope", "include", "exclude", "updates")
    given = {
        name: tuple(spec[name]) if isinstance(spec[name], list) else spec[name]
        for name in names
        if spec.get(name) not in (None, False)
    }
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
    folder = str(Path(record.path))
    probe = f"with deltalens.GradientProbe(model, {folder!r}, {arguments}):"
    return Repeat(
        Lines(probe, "    trainer.train()"),
        ("A probe's run is made in your training script; its folder must be new.",),
    )


def _is_file(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 3 and isinstance(value[0], str)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) and value == int(value) else str(value)
