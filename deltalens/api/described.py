"""Parameters that say what they are: one description for Python's help and for the command line."""

from __future__ import annotations

import functools
import inspect
import textwrap
import typing
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar, get_args, get_type_hints

from deltalens.errors import DeltaLensError

__all__ = ["Arg", "Opt", "Parameter", "described", "parameters_of"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Arg:
    """A positional argument of a command; it has to be given where its parameter has no default."""

    metavar: str
    about: str
    repeat: bool = False


@dataclass(frozen=True)
class Opt:
    """An option of a command; a keyword argument of its function."""

    about: str
    """The help text: one line, in plain words, without a full stop's worth of details."""
    default: Any = None
    """Of options that a `TypedDict` lists; a parameter has its own."""
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    """Spellings beside `--the-name`."""
    minimum: float | None = None
    common: bool = False
    """Shown by `--help`; the others by `--help-all`."""
    python_only: bool = False
    """Functions and objects, which no command line can name."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function that a command is made of."""

    name: str
    kind: Any
    """Its type, without what is said about it."""
    said: Arg | Opt
    default: Any
    """`inspect.Parameter.empty` where it has to be given."""

    @property
    def required(self) -> bool:
        """Whether it has to be given."""
        return self.default is inspect.Parameter.empty


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a function, with those that its `**options` stand for.

    Args:
        function: whose annotations carry an `Arg` or `Opt`.

    Returns:
        Name -> parameter, in the order of the signature.

    Raises:
        TypeError: a parameter says nothing about itself.
    """
    function = inspect.unwrap(function)
    # What is returned may name a class that is not loaded.
    taken = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    holder: Any = SimpleNamespace(__annotations__=taken)
    hints = get_type_hints(holder, function.__globals__, include_extras=True)
    found: dict[str, Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            (options,) = get_args(hints[name])
            for key, hint in _fields(options).items():
                kind, said = _described(function, key, hint)
                found[key] = Parameter(key, kind, said, getattr(said, "default", None))
            continue
        kind, said = _described(function, name, hints[name])
        found[name] = Parameter(name, kind, said, parameter.default)
    return found


def described(function: F) -> F:
    """A function whose `**options` are checked, and shown by `help` with types and defaults.

    Args:
        function: with `**options: Unpack[T]`, T a `TypedDict` whose fields carry an `Opt`.

    Returns:
        The same function, with the whole signature and a section on its options.
    """
    known = parameters_of(function)
    own = inspect.signature(function).parameters
    options = {name: each for name, each in known.items() if name not in own}

    @functools.wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        for name in given:
            if name not in known:
                raise TypeError(f"{function.__name__}() has no argument {name!r}")
        return function(*args, **given)

    shown = [
        each.replace(annotation=known[name].kind)
        for name, each in own.items()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shown += [
        inspect.Parameter(name, keyword, default=each.default, annotation=each.kind)
        for name, each in options.items()
    ]
    result = inspect.signature(function).return_annotation
    checked.__signature__ = inspect.Signature(shown, return_annotation=result)  # type: ignore[attr-defined]
    checked.__doc__ = _with_options(function.__doc__ or "", options)
    return typing.cast(F, checked)


def _fields(options: Any) -> dict[str, Any]:
    return get_type_hints(options, include_extras=True)


def _described(function: Callable[..., Any], name: str, hint: Any) -> tuple[Any, Arg | Opt]:
    for said in getattr(hint, "__metadata__", ()):
        if isinstance(said, Arg | Opt):
            return get_args(hint)[0], said
    raise TypeError(f"{function.__name__}: parameter {name} has no Arg or Opt")


def _with_options(text: str, options: dict[str, Parameter]) -> str:
    """A docstring, with its options before what is returned."""
    if not options:
        return text
    lines = []
    for name, each in options.items():
        default = "" if each.default in (None, (), "") else f" Default: {each.default!r}."
        line = f"{name}: {each.said.about}{default}"
        lines += textwrap.wrap(line, 92, initial_indent=" " * 8, subsequent_indent=" " * 12)
    section = "\n".join(["    Options:", *lines, "", "    Returns:"])
    if "    Returns:" not in text:
        raise DeltaLensError("a described function says what it returns")
    return text.replace("    Returns:", section, 1)
