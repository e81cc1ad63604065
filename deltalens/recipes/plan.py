"""A recipe, a place and a size -> the commands to run, in an order in which each finds what it
needs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, similar_names
from deltalens.recipes.schema import Call, Choice, Data, Makes, Model, Owner, Recipe, Step, Value

__all__ = ["Places", "Plan", "PlannedFigure", "PlannedStep", "plan"]

_VARIABLE = re.compile(r"\{([a-z_]+)\}")
_REFERENCE = re.compile(r"(?<![\w/])@([A-Za-z][\w.-]*\w)")
_SETTING = "setting."
"""What options begin with that are handed to every method that has them."""
_TOY = Model(hub="toy", parameters=2.9e5, blocks=3)
"""Stands for every model in miniature."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a plan finds and puts things."""

    out: Path
    base: str = ""
    """A folder or hub id, instead of the model that a recipe calls `base`."""
    data: Mapping[str, str] = field(default_factory=dict)
    """A data set's name -> a local file to use instead."""
    demo: bool = False
    """In miniature: every model is the demo's base, and rows are the demo's."""

    def rows(self, name: str) -> Path:
        """The file of a data set.

        Args:
            name: in the recipe; in a demo, of one of the demo's files.

        Returns:
            Its path, whether it is there yet or not.
        """
        given = self.data.get(name)
        return Path(given) if given is not None else self.out / "data" / f"{name}.jsonl"

    def model(self, name: str, model: Model | None) -> str:
        """The folder or hub id of a model.

        Args:
            name: in the recipe.
            model: of this name; None in a demo.

        Returns:
            What a command is given.
        """
        if self.demo or model is None:
            return str(self.out / "base")
        return self.base if name == "base" and self.base else model.hub


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A command of a plan."""

    name: str
    """`mft/fft-llama2-7b-maths`: unique in a folder, and where it writes."""
    why: str
    command: tuple[str, ...]
    """`("sweep", "mask-ratio")`."""
    arguments: tuple[str, ...]
    options: Mapping[str, Value]
    """By name, with dashes, without `-o`."""
    folder: Path
    needs: tuple[str, ...]
    """Names of steps that come before."""
    identity: str
    """Of everything that decides its result, and that of what it needs."""
    model: Model | None
    """That it begins from, through all steps before it."""
    rows: Mapping[str, tuple[Data, ...]]
    """Option -> the data sets that it names."""
    uses: tuple[str, ...]
    """Groups of the recipe's settings that are among its options."""
    owner: Owner | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedFigure:
    """A figure or table of a plan."""

    name: str
    steps: tuple[str, ...]
    """That it needs."""
    studies: tuple[Path, ...]
    mixed: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe runs."""

    recipe: Recipe
    places: Places
    steps: tuple[PlannedStep, ...]
    figures: tuple[PlannedFigure, ...]
    models: Mapping[str, Model]
    """That are downloaded, by name."""
    data: Mapping[str, Data]
    """That are downloaded, by name."""


def plan(recipe: Recipe, places: Places, figures: Sequence[str] = ()) -> Plan:
    """Plan a recipe.

    Args:
        recipe: to be planned.
        places: where its models, data and results are.
        figures: that are wanted; all of them, and the steps beyond figures, if empty.

    Returns:
        The plan.

    Raises:
        DeltaLensError: the recipe names something that it does not have, or cannot be made in
            miniature.
    """
    return _Planner(recipe, places).made(figures)


class _Planner:
    """Resolves calls of steps, each once."""

    def __init__(self, recipe: Recipe, places: Places) -> None:
        if places.demo and recipe.demo is None:
            raise DeltaLensError(f"{recipe.name}: does not say how it is made in miniature")
        self._recipe, self._places = recipe, places
        self._steps: dict[str, PlannedStep] = {}
        self._models: dict[str, Model] = {}
        self._data: dict[str, Data] = {}

    def made(self, wanted: Sequence[str]) -> Plan:
        """See `plan`."""
        recipe = self._recipe
        drawn = tuple(
            self._figure(name, makes)
            for name, makes in recipe.makes.items()
            if not wanted or name in wanted
        )
        if not wanted:
            for step in self._called(recipe.also):
                self._steps.setdefault(step.name, step)
        return Plan(
            recipe=recipe,
            places=self._places,
            steps=tuple(self._steps.values()),
            figures=tuple(
                each for each in drawn if each.studies or not recipe.makes[each.name].studies
            ),
            models=self._models,
            data=self._data,
        )

    def _figure(self, name: str, makes: Makes) -> PlannedFigure:
        first, second = self._called(makes.studies), self._called(makes.mixed)
        return PlannedFigure(
            name=name,
            steps=tuple(step.name for step in (*first, *second)),
            studies=tuple(step.folder for step in first),
            mixed=tuple(step.folder for step in second),
        )

    def _called(self, calls: Sequence[Call]) -> list[PlannedStep]:
        """The steps that some calls stand for, without repetition."""
        found: dict[str, PlannedStep] = {}
        for call in calls:
            for combination in itertools.product(*call.values.values()):
                values = self._in_miniature(dict(zip(call.values, combination, strict=True)))
                if values is not None:
                    step = self._step(call.step, values)
                    found[step.name] = step
        return [*found.values()]

    def _in_miniature(self, values: Mapping[str, str]) -> dict[str, str] | None:
        """The values in a demo; None if this call has no place there."""
        if not self._places.demo or self._recipe.demo is None:
            return dict(values)
        changed = {}
        for name, value in values.items():
            others = self._recipe.demo.values.get(name, {})
            new = others.get(value, others.get("*", value))
            if new is None:
                return None
            changed[name] = new
        return changed

    def _step(self, called: str, values: Mapping[str, str]) -> PlannedStep:
        template = self._template(called)
        options = self._options(template)
        mine = self._variables(called, template, options)
        missing = [name for name in mine if name not in values]
        if missing:
            raise self._fault(called, f"no value is given for {', '.join(missing)}")
        # In the order of the call, which every recipe keeps.
        own = {name: value for name, value in values.items() if name in mine}
        name = self._named(called, own)
        if name in self._steps:
            return self._steps[name]
        words = [self._filled(word, own, called) for word in shlex.split(template.run)]
        filled = {key: self._resolved(value, own, called) for key, value in options.items()}
        given = _gathered({key: value for key, value in filled.items() if value is not None})
        references = [*_references(words), *_references(given.values())]
        steps = [each for each in references if each in self._recipe.steps]
        needs = [self._step(each, values) for each in steps]
        models = [self._recipe.models[each] for each in references if each in self._recipe.models]
        folders = {each: self._step(each, values).folder for each in steps}
        split = 2 if words[0] == "sweep" and template.owner is None else 1
        step = PlannedStep(
            name=name,
            why=self._filled(template.why, own, called),
            command=tuple(words[:split]),
            arguments=tuple(self._placed(word, folders) for word in words[split:]),
            options={key: self._placed(value, folders) for key, value in given.items()},
            folder=self._places.out / name,
            needs=tuple(need.name for need in needs),
            identity=self._identity(words, given, needs),
            model=_TOY if self._places.demo else self._model(models, needs),
            rows={key: self._data_in(value) for key, value in given.items()},
            uses=template.uses,
            owner=template.owner,
        )
        if template.owner is None and not self._places.demo:
            self._note_downloads(references)
        self._steps[name] = step
        return step

    def _model(self, named: Sequence[Model], needs: Sequence[PlannedStep]) -> Model | None:
        if named:
            return named[0]
        return next((need.model for need in needs if need.model is not None), None)

    def _data_in(self, value: Value) -> tuple[Data, ...]:
        known = self._recipe.data
        return tuple(known[each] for each in _references([value]) if each in known)

    def _note_downloads(self, references: Sequence[str]) -> None:
        for each in references:
            if each in self._recipe.models and not (each == "base" and self._places.base):
                self._models[each] = self._recipe.models[each]
            if each in self._recipe.data and each not in self._places.data:
                self._data[each] = self._recipe.data[each]

    def _template(self, called: str) -> Step:
        steps = self._recipe.steps
        if called not in steps:
            near = similar_names(called, steps, 1, 0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise self._fault(called, f"no such step{hint}")
        return steps[called]

    def _options(self, template: Step) -> dict[str, Value | Choice]:
        """Its options, before variables have values."""
        options: dict[str, Value | Choice] = {}
        demo = self._recipe.demo if self._places.demo else None
        for group in template.uses:
            if group not in self._recipe.settings:
                raise self._fault(template.run, f"no settings are called {group!r}")
            settings = self._recipe.settings[group]
            options |= {name: each.value for name, each in settings.items()}
            if demo is not None:
                options |= demo.settings.get(group, {})
        options |= template.options
        return {**options, **template.demo} if demo is not None else options

    def _variables(
        self, called: str, template: Step, options: Mapping[str, Value | Choice]
    ) -> list[str]:
        """The variables that a step depends on, itself or through another step."""
        texts = [template.run, *options.values()]
        found = dict.fromkeys(_VARIABLE.findall(template.run))
        for value in texts:
            found |= dict.fromkeys(_variables_in(value))
        for each in _references(texts):
            if each in self._recipe.steps and each != called:
                other = self._recipe.steps[each]
                found |= dict.fromkeys(self._variables(each, other, self._options(other)))
        return [*found]

    def _named(self, called: str, own: Mapping[str, str]) -> str:
        group = self._recipe.paper.lower() or self._recipe.name
        return f"{group}/{'-'.join([called, *own.values()])}"

    def _filled(self, text: str, own: Mapping[str, str], called: str) -> str:
        def value_of(match: re.Match[str]) -> str:
            if match[1] not in own:
                raise self._fault(called, f"{{{match[1]}}} is not a variable of its command")
            return own[match[1]]

        return _VARIABLE.sub(value_of, text)

    def _resolved(self, value: Value | Choice, own: Mapping[str, str], called: str) -> Value:
        if isinstance(value, Choice):
            key = " ".join(own[name] for name in value.by.split())
            if key not in value.values and "*" not in value.values:
                raise self._fault(called, f"no value for {key!r} among {', '.join(value.values)}")
            return self._resolved(value.values.get(key, value.values.get("*")), own, called)
        if isinstance(value, list):
            return [self._resolved(each, own, called) for each in value]
        return self._filled(value, own, called) if isinstance(value, str) else value

    def _placed(self, value: Value, folders: Mapping[str, Path]) -> Value:
        """A value with paths and hub ids where it names steps, data and models."""
        if isinstance(value, list):
            return [self._placed(each, folders) for each in value]
        if not isinstance(value, str):
            return value

        def place(match: re.Match[str]) -> str:
            name, recipe = match[1], self._recipe
            if name in folders:
                return str(folders[name])
            if name in recipe.models or (self._places.demo and name == _TOY.hub):
                return self._places.model(name, recipe.models.get(name))
            if name in recipe.data or self._places.demo:
                return str(self._places.rows(name))
            known = [*recipe.steps, *recipe.models, *recipe.data]
            near = similar_names(name, known, 1, 0.6)
            hint = f"; did you mean @{near[0]}?" if near else ""
            raise self._fault(f"@{name}", f"names no step, model or data set{hint}")

        return _REFERENCE.sub(place, value)

    def _identity(
        self, words: Sequence[str], given: Mapping[str, Value], needs: Sequence[PlannedStep]
    ) -> str:
        content = {
            "words": words,
            "options": {key: value for key, value in given.items() if key != "jobs"},
            "needs": [need.identity for need in needs],
            "demo": self._places.demo,
            "base": self._places.base,
            "data": dict(self._places.data),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _fault(self, where: str, message: str) -> DeltaLensError:
        return DeltaLensError(f"{self._recipe.name}: {where}: {message}")


def _gathered(options: Mapping[str, Value]) -> dict[str, Value]:
    """`setting.NAME: value` becomes one of the values of `setting`."""
    gathered = {name: value for name, value in options.items() if not name.startswith(_SETTING)}
    shared = [
        f"{name.removeprefix(_SETTING)}={value}"
        for name, value in options.items()
        if name.startswith(_SETTING)
    ]
    return {**gathered, "setting": shared} if shared else gathered


def _variables_in(value: Value | Choice) -> Iterator[str]:
    if isinstance(value, Choice):
        yield from value.by.split()
        for each in value.values.values():
            yield from _variables_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from _variables_in(each)
    elif isinstance(value, str):
        yield from _VARIABLE.findall(value)


def _references(values: Any) -> list[str]:
    found: dict[str, None] = {}
    for value in values:
        if isinstance(value, Choice):
            found |= dict.fromkeys(_references(value.values.values()))
        elif isinstance(value, list):
            found |= dict.fromkeys(_references(value))
        elif isinstance(value, str):
            found |= dict.fromkeys(_REFERENCE.findall(value))
    return [*found]
