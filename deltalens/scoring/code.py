"""What a function of the caller's is: its code, and all that it refers to.

A study that is asked again hands numbers back only if they were measured by the same function. A
name says nothing about that: two lambdas share one. So what decides a function's result is
followed: its code with constants and defaults, what it has captured, what it finds in the globals
of its module, the code of the helpers it calls. Installed libraries count as their names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from deltalens.scoring.digests import Digest, Unknown

__all__ = ["KnownFunction", "identify", "identify_module"]

_SAY = (
    "Say it with version=, from the first call on, and another one whenever it changes; or begin "
    "anew with fresh=True"
)
_OF_TORCH = {"_parameters", "_buffers", "_modules", "training", "_non_persistent_buffers_set"}


@dataclass(frozen=True)
class KnownFunction:
    """What a study records of a function of the caller's."""

    spec: dict[str, Any] | None
    """Equal for equal functions, as JSON values; None without a function."""
    once: str | None = None
    """Why nobody can know whether a later call hands in the same one, if so."""


def identify(function: Callable[..., Any] | None, version: str | int | None) -> KnownFunction:
    """What a function is, by its parts; or by the caller's word.

    Args:
        function: a function, a bound method, a partial, or an object that can be called.
        version: the caller's own name for what the function does. Nothing is looked at then.
    """
    if function is None:
        return KnownFunction(None)
    name = _name(function)
    if version is not None:
        return KnownFunction({"name": name, "version": str(version)})
    digest = Digest(getattr(function, "__module__", None) or type(function).__module__)
    return _known(name, digest, digest.parts(function))


def identify_module(module: nn.Module) -> KnownFunction:
    """What a model in memory is: classes, parameters and buffers, and what else its own classes
    keep (those of libraries have it in their configuration)."""
    digest = Digest()
    kinds, kept = {}, {}
    for name, part in module.named_modules():
        kinds[name] = (type(part), part.training)
        if not digest.library(type(part).__module__):
            kept[name] = {n: v for n, v in vars(part).items() if n not in _OF_TORCH}
    tensors = [dict(module.named_parameters()), dict(module.named_buffers())]
    parts = {"classes": kinds, "tensors": tensors, "attributes": kept}
    return _known(type(module).__qualname__, digest, parts.items())


def _known(name: str, digest: Digest, named: Iterable[tuple[str, Any]]) -> KnownFunction:
    parts: dict[str, str | None] = {}
    unknown = []
    for part, value in named:
        try:
            parts[part] = digest.of(value)
        except (Unknown, RecursionError) as error:
            parts[part] = None
            unknown.append(f"{part} ({error if isinstance(error, Unknown) else 'too deep'})")
    once = f"nobody can tell whether {name} is what it was: {'; '.join(unknown)}. {_SAY}"
    return KnownFunction({"name": name, "parts": parts}, once if unknown else None)


def _name(function: Any) -> str:
    if isinstance(function, functools.partial):
        return f"partial of {_name(function.func)}"
    return str(getattr(function, "__qualname__", type(function).__qualname__))
