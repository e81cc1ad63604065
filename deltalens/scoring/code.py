"""The identity of a caller's function: digests of its code and of everything that it refers to.

When a study is resumed, recorded numbers are used only if the same function measured them. Its name
does not tell: two lambdas share one. Everything that decides a function's result is digested: its
code with constants and defaults, what it captures, the globals of its module that it uses, and the
code of the helpers that it calls. Installed libraries are represented by their names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from deltalens.scoring.digests import Digest, Unknown

__all__ = ["FunctionIdentity", "identify", "identify_module"]

_ADVICE = (
    "Pass version=... from the first call on, and change it whenever the function changes; or "
    "start over with fresh=True"
)
_TORCH_ATTRIBUTES = {
    "_parameters",
    "_buffers",
    "_modules",
    "training",
    "_non_persistent_buffers_set",
}


@dataclass(frozen=True)
class FunctionIdentity:
    """What a study records about a caller's function."""

    spec: dict[str, Any] | None
    """JSON values that are equal for equal functions; None if there is no function."""
    not_comparable: str | None = None
    """Why a later call's function could not be compared with this one; None if it can."""


def identify(function: Callable[..., Any] | None, version: str | int | None) -> FunctionIdentity:
    """Identify a function by digests of its parts, or by a version that the caller states.

    Args:
        function: a function, bound method, partial, or callable object; None: there is none.
        version: the caller's version of the function; if set, the function is not examined.

    Returns:
        The function's identity.
    """
    if function is None:
        return FunctionIdentity(None)
    name = _name(function)
    if version is not None:
        return FunctionIdentity({"name": name, "version": str(version)})
    digest = Digest(getattr(function, "__module__", None) or type(function).__module__)
    return _identity(name, digest, digest.parts(function))


def identify_module(module: nn.Module) -> FunctionIdentity:
    """Identify a model in memory.

    Args:
        module: the model.

    Returns:
        Its identity: classes, parameters and buffers, and further attributes of classes that are
        not a library's (a library's have theirs in the configuration).
    """
    digest = Digest()
    classes, attributes = {}, {}
    for name, part in module.named_modules():
        classes[name] = (type(part), part.training)
        if not digest.library(type(part).__module__):
            attributes[name] = {n: v for n, v in vars(part).items() if n not in _TORCH_ATTRIBUTES}
    tensors = [dict(module.named_parameters()), dict(module.named_buffers())]
    parts = {"classes": classes, "tensors": tensors, "attributes": attributes}
    return _identity(type(module).__qualname__, digest, parts.items())


def _identity(name: str, digest: Digest, named: Iterable[tuple[str, Any]]) -> FunctionIdentity:
    parts: dict[str, str | None] = {}
    unknown = []
    for part, value in named:
        try:
            parts[part] = digest.of(value)
        except (Unknown, RecursionError) as error:
            parts[part] = None
            unknown.append(f"{part} ({error if isinstance(error, Unknown) else 'too deep'})")
    reason = f"whether {name} has changed cannot be determined: {'; '.join(unknown)}. {_ADVICE}"
    return FunctionIdentity({"name": name, "parts": parts}, reason if unknown else None)


def _name(function: Any) -> str:
    if isinstance(function, functools.partial):
        return f"partial of {_name(function.func)}"
    return str(getattr(function, "__qualname__", type(function).__qualname__))
