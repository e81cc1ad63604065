"""From the name of a training method to its class, and from what a user types to methods with
their settings."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from deltalens.catalog.methods import (
    METHODS,
    TRAININGS,
    facts_of,
    method_name,
    package_methods,
)
from deltalens.catalog.plugins import find, load_code
from deltalens.errors import DeltaLensError
from deltalens.training.methods.base import Method

__all__ = [
    "Methods",
    "labelled",
    "method_class",
    "method_of",
    "read_methods",
    "read_settings",
    "trainable",
]

Methods = str | Method | Sequence[str | Method]
"""Methods as a user gives them: "gmt:scope=global,random-mask", or a list of names and methods."""


def trainable() -> Iterator[str]:
    """The methods that train a model by themselves: ours, then those of installed packages.

    Returns:
        Their names.
    """
    yield from TRAININGS
    for name, facts in package_methods():
        if not facts.as_trained:
            yield name


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: of the method.

    Returns:
        Its class; nothing else of deltalens' heavier parts is imported.

    Raises:
        DeltaLensError: no such method (near names are shown), or a package's cannot be loaded.
    """
    facts = facts_of(name) if method_name(name) == name else None
    if facts is None or (name in METHODS and not facts.code):
        known = [*METHODS, *(one for one, _ in package_methods())]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DeltaLensError(f"method {name!r}: choose one of {', '.join(trainable())}{hint}")
    plugin = None if name in METHODS else find("method", name, METHODS)
    loaded: Any = plugin.load() if plugin else load_code(facts.code)
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise DeltaLensError(f"{plugin}: is no subclass of deltalens.training.methods.Method")
    if loaded.name != name:
        raise DeltaLensError(f"{plugin}: its class calls the method {loaded.name!r}")
    return loaded


def method_of(method: str | Method, **settings: Any) -> Method:
    """A method with its settings.

    Args:
        method: its name; or a method that is ready, with nothing else.
        settings: of its own; those that are not given have their defaults.

    Returns:
        The method.

    Raises:
        DeltaLensError: no such method, a setting that it does not have, or a bad value.
    """
    if isinstance(method, Method):
        if settings:
            raise DeltaLensError(
                f"{method.name}: has its settings already; {', '.join(settings)} cannot be added"
            )
        return method
    kind = method_class(method)
    unknown = [name for name in settings if name not in kind.own_settings()]
    if unknown:
        raise _no_setting(kind, unknown)
    return kind(**settings)


def read_methods(
    methods: Methods,
    settings: Mapping[str, Any] | Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> list[Method]:
    """Methods with their settings, as commands and the Python functions take them.

    Args:
        methods: names, each with settings behind colons, separated by commas
            ("gmt:scope=global:apply-to=update,random-mask"); or a sequence of such names and of
            methods.
        settings: for every method that has them: a mapping, or texts `NAME=VALUE`. A method's own
            go first.
        defaults: the same, where neither is given.

    Returns:
        The methods in the order given, each once. A name may come several times with different
        settings: these are variants of one method (`labelled`).

    Raises:
        DeltaLensError: an unknown method, or a setting that none of the methods has.
    """
    shared = dict(settings) if isinstance(settings, Mapping) else read_settings(settings)
    chosen: list[Method] = []
    left = {*shared}
    for name, own in _named(methods):
        if isinstance(name, Method):
            method = name
        else:
            left -= {*method_class(name).own_settings()}
            method = method_of(name, **_converted(name, _merged(name, defaults or {}, shared, own)))
            object.__setattr__(method, "given", tuple(own))
        chosen.append(method)
    kinds = {method.name: type(method) for method in chosen}
    if left and len(kinds) == 1:
        (kind,) = kinds.values()
        raise _no_setting(kind, sorted(left))
    if left and kinds:
        known = "; ".join(
            f"{name} has {', '.join(kind.own_settings()) or 'none'}" for name, kind in kinds.items()
        )
        raise DeltaLensError(f"setting {', '.join(sorted(left))}: no method here has it ({known})")
    return list(labelled(chosen).values())


def labelled(methods: Sequence[Method]) -> dict[str, Method]:
    """What each method is called in a study.

    Args:
        methods: with their settings, in any order; those that train alike count once.

    Returns:
        Label -> method, in the order given. A method that is there once is called by its name, with
        whatever settings; of several variants each is called `Method.variant`.

    Raises:
        DeltaLensError: two variants differ in nothing that was given for them.

    Example:
        >>> [*labelled(read_methods("gmt:scope=global,gmt:scope=tensor,sft"))]
        ['gmt:scope=global', 'gmt:scope=tensor', 'sft']
    """
    variants: dict[str, list[Method]] = {}
    for method in methods:
        of_name = variants.setdefault(method.name, [])
        if all(method.settings(None) != other.settings(None) for other in of_name):
            of_name.append(method)
    labels: dict[str, Method] = {}
    for name, of_name in variants.items():
        for method in of_name:
            label = method.variant if len(of_name) > 1 else name
            if label in labels:
                raise DeltaLensError(
                    f"method {label}: given twice, with different settings; give those in which "
                    f"the two differ behind a colon, as in {name}:SETTING=VALUE"
                )
            labels[label] = method
    return labels


def _no_setting(kind: type[Method], unknown: list[str]) -> DeltaLensError:
    return DeltaLensError(
        f"{kind.name}: has no setting {', '.join(unknown)}; it has "
        f"{', '.join(kind.own_settings()) or 'none of its own'}"
    )


def read_settings(texts: Sequence[str]) -> dict[str, str]:
    """Settings as they are typed.

    Args:
        texts: `NAME=VALUE` each; a bare NAME switches a flag on.

    Returns:
        Name, with underscores -> value as text.

    Raises:
        DeltaLensError: one has no name, or a name comes twice.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not name or name in settings:
            raise DeltaLensError(f"setting {text!r}: write NAME=VALUE, each name once")
        settings[name] = value if "=" in text else "true"
    return settings


def _merged(name: str, *layers: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings: of several layers the later ones count; all but the last may hold what
    the method does not have."""
    kind = method_class(name)
    merged: dict[str, Any] = {}
    for layer in layers:
        for given, replaced in kind.replaces.items():
            if given in layer:
                merged.pop(replaced, None)
        last = layer is layers[-1]
        merged |= {key: value for key, value in layer.items() if last or key in kind.own_settings()}
    return merged


def _named(methods: Methods) -> Iterator[tuple[str | Method, dict[str, str]]]:
    """Each method with the settings that are typed behind it."""
    if isinstance(methods, Method):
        yield methods, {}
        return
    for given in [methods] if isinstance(methods, str) else methods:
        if isinstance(given, Method):
            yield given, {}
            continue
        for text in _split(given):
            name, *settings = text.split(":")
            yield name.strip(), read_settings(settings)


def _split(text: str) -> list[str]:
    """Split at the commas that begin a method: a value may have commas of its own, as in
    `mft:blocks=4-7,12:mask-ratio=0.1,q=0.2,sft`."""
    parts: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name = part.partition(":")[0]
        if parts and "=" in parts[-1] and facts_of(name) is None:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def _converted(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values that were typed, as the types of the method's fields."""
    hints = get_type_hints(method_class(method))
    return {
        name: _convert(name, value, hints[name])
        if isinstance(value, str) and name in hints
        else value
        for name, value in settings.items()
    }


def _convert(name: str, text: str, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kind = next((kind for kind in kinds if kind is not type(None)), str)
    if kind is not str and str in kinds:
        try:
            return kind(text)
        except ValueError:
            return text
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise DeltaLensError(f"{name} {text!r}: choose true or false")
        return words[text.lower()]
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError as error:
        raise DeltaLensError(f"{name} {text!r}: not a number") from error
