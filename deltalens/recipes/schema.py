"""What a recipe file may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from deltalens.recipes.strict import Faults, is_scalar, read_as, read_by, read_named, values_of

__all__ = [
    "Benchmark",
    "Call",
    "Choice",
    "Data",
    "Demo",
    "Makes",
    "Model",
    "Owner",
    "Recipe",
    "Setting",
    "Source",
    "Step",
    "Value",
]

Value: TypeAlias = Any
"""A text, a number, a truth value, a list of those, or None: the option is not given."""


def _value(raw: Any, where: str, faults: Faults) -> Value | Choice:
    if isinstance(raw, Mapping):
        return read_as(Choice, raw, where, faults)
    if raw is None or is_scalar(raw) or (isinstance(raw, list) and all(map(is_scalar, raw))):
        return raw
    faults.at(where, f"{raw!r} is no value")
    return None


def _values(raw: Any, where: str, faults: Faults) -> dict[str, Value]:
    if isinstance(raw, Mapping):
        return {str(name): _value(each, f"{where}.{name}", faults) for name, each in raw.items()}
    faults.at(where, f"not a mapping of options to values: {raw!r}")
    return {}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A value that depends on a step's variables."""

    by: str
    """Their names, with spaces between several."""
    values: Mapping[str, Value] = field(metadata=read_by(_values))
    """Their values, with spaces, to the value; `*` stands for all others."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the paper."""

    hub: str
    parameters: float
    blocks: int = 32
    """Transformer blocks."""
    bytes_each: float = 2
    """Of a stored parameter: what is downloaded is this much of each."""

    @property
    def size(self) -> float:
        """Bytes of its weights on the hub."""
        return self.parameters * self.bytes_each


def _texts(raw: Any, where: str, faults: Faults) -> dict[str, str]:
    if isinstance(raw, Mapping) and all(isinstance(x, str) for pair in raw.items() for x in pair):
        return dict(raw)
    faults.at(where, f"not a mapping of texts: {raw!r}")
    return {}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows on the hub."""

    hub: str
    rows: int
    megabytes: float
    config: str = ""
    split: str = "train"
    """As `datasets` takes it, slices included: `train[2000:]`."""
    fields: Mapping[str, str] = field(metadata=read_by(_texts))
    """What we call a field -> its name there."""


def _sources(raw: Any, where: str, faults: Faults) -> tuple[Source, ...]:
    if not isinstance(raw, list) or not raw:
        faults.at(where, "not a list of sources")
        return ()
    made = [read_as(Source, each, f"{where}[{n}]", faults) for n, each in enumerate(raw)]
    return tuple(each for each in made if each is not None)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows to train on or to measure on."""

    tokens: int
    """In a row, about, for estimates."""
    sources: tuple[Source, ...] = field(default=(), metadata=read_by(_sources))
    """Mixed, where there are several."""
    of: str = ""
    """Instead of sources: the data set whose first rows these are."""
    first: int = 0
    """How many of them."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.first or sum(each.rows for each in self.sources)

    @property
    def size(self) -> float:
        """Bytes on the hub."""
        return sum(each.megabytes for each in self.sources) * 1e6


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A standard task, for estimates."""

    rows: int
    tokens: int
    """Read and written for a row, about."""


def _groups(raw: Any, where: str, faults: Faults) -> dict[str, dict[str, Value]]:
    if isinstance(raw, Mapping):
        return {str(name): _values(each, f"{where}.{name}", faults) for name, each in raw.items()}
    faults.at(where, f"not a mapping of groups of options: {raw!r}")
    return {}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A hyperparameter, and where it comes from."""

    value: Value | Choice = field(metadata=read_by(_value))
    paper: str = ""
    """Where the paper says so."""
    ours: str = ""
    """Why we chose it, where the paper is silent."""


def _setting_groups(raw: Any, where: str, faults: Faults) -> dict[str, dict[str, Setting]]:
    found: dict[str, dict[str, Setting]] = {}
    if not isinstance(raw, Mapping):
        faults.at(where, f"not a mapping of groups of settings: {raw!r}")
        return found
    for group, settings in raw.items():
        found[group] = read_named(Setting)(settings, f"{where}.{group}", faults)
        for name, each in found[group].items():
            if bool(each.paper) == bool(each.ours):
                faults.at(
                    f"{where}.{group}.{name}",
                    "say where the paper has it (`paper`), or why we chose it (`ours`)",
                )
    return found


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who measures what deltalens does not."""

    because: str
    """Why it may not run."""
    program: str = ""
    """Of the owner; empty if there is none that could be started."""
    install: str = ""
    """What makes it available."""


def _owner(raw: Any, where: str, faults: Faults) -> Owner | None:
    return read_as(Owner, raw, where, faults)


def _names(raw: Any, where: str, faults: Faults) -> tuple[str, ...]:
    if isinstance(raw, list) and all(isinstance(each, str) for each in raw):
        return tuple(raw)
    faults.at(where, f"not a list of names: {raw!r}")
    return ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command. `{name}` stands for a variable's value, `@name` for a step's folder, a data file
    or a model."""

    run: str
    """The command's words and arguments; `-o` is added."""
    why: str
    """The question that it answers, in a line."""
    uses: tuple[str, ...] = field(default=(), metadata=read_by(_names))
    """Groups of settings that become its options."""
    options: Mapping[str, Value] = field(default_factory=dict, metadata=read_by(_values))
    demo: Mapping[str, Value] = field(default_factory=dict, metadata=read_by(_values))
    """Options that are others in miniature."""
    owner: Owner | None = field(default=None, metadata=read_by(_owner))
    """Whose command it is, if not ours."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """A step with values for its variables; several values make several calls."""

    step: str
    values: Mapping[str, tuple[str, ...]]


def _calls(raw: Any, where: str, faults: Faults) -> tuple[Call, ...]:
    found = []
    for number, each in enumerate(values_of(raw)):
        at = f"{where}[{number}]"
        if not isinstance(each, Mapping) or not isinstance(each.get("step"), str):
            faults.at(at, "name a step: {step: ..., variable: value}")
            continue
        values = {str(k): tuple(map(str, values_of(v))) for k, v in each.items() if k != "step"}
        found.append(Call(step=each["step"], values=values))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Makes:
    """A figure or table, and the studies that it is drawn from."""

    studies: tuple[Call, ...] = field(metadata=read_by(_calls))
    mixed: tuple[Call, ...] = field(default=(), metadata=read_by(_calls))
    """Studies for the second half of MFT's Tables 1 and 2."""


def _makes(raw: Any, where: str, faults: Faults) -> dict[str, Makes]:
    if isinstance(raw, Mapping):
        raw = {k: v if isinstance(v, Mapping) else {"studies": v} for k, v in raw.items()}
    return read_named(Makes)(raw, where, faults)


def _replacements(raw: Any, where: str, faults: Faults) -> dict[str, dict[str, str | None]]:
    """Variable -> value -> value in miniature, None for none; a single text stands for all."""
    found: dict[str, dict[str, str | None]] = {}
    for name, each in (raw if isinstance(raw, Mapping) else {"": raw}).items():
        if isinstance(each, str):
            found[str(name)] = {"*": each}
        elif isinstance(each, Mapping) and all(
            v is None or isinstance(v, str) for v in each.values()
        ):
            found[str(name)] = {str(k): v for k, v in each.items()}
        else:
            faults.at(where, f"not variables with values: {raw!r}")
    return found


@dataclass(frozen=True, kw_only=True)
class Demo:
    """How a recipe is made in miniature, on the demo's models."""

    note: str = ""
    """What is different there, in a sentence."""
    values: Mapping[str, Mapping[str, str | None]] = field(
        default_factory=dict, metadata=read_by(_replacements)
    )
    settings: Mapping[str, Mapping[str, Value]] = field(
        default_factory=dict, metadata=read_by(_groups)
    )
    """Group -> option -> value, instead of those of the recipe."""


def _demo(raw: Any, where: str, faults: Faults) -> Demo | None:
    return read_as(Demo, raw, where, faults)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment."""

    name: str
    title: str
    paper: str
    """GMT, MFT or SPEFT; empty for deltalens' own."""
    makes: Mapping[str, Makes] = field(default_factory=dict, metadata=read_by(_makes))
    also: tuple[Call, ...] = field(default=(), metadata=read_by(_calls))
    """Steps that no figure is drawn from."""
    notes: tuple[str, ...] = field(default=(), metadata=read_by(_names))
    """What else the paper says of the set-up, and what of it is done otherwise."""
    models: Mapping[str, Model] = field(default_factory=dict, metadata=read_by(read_named(Model)))
    data: Mapping[str, Data] = field(default_factory=dict, metadata=read_by(read_named(Data)))
    tasks: Mapping[str, Benchmark] = field(
        default_factory=dict, metadata=read_by(read_named(Benchmark))
    )
    settings: Mapping[str, Mapping[str, Setting]] = field(
        default_factory=dict, metadata=read_by(_setting_groups)
    )
    steps: Mapping[str, Step] = field(default_factory=dict, metadata=read_by(read_named(Step)))
    demo: Demo | None = field(default=None, metadata=read_by(_demo))
