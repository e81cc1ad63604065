"""Digests of values by their content: data, objects, functions and the code behind them."""

from __future__ import annotations

import builtins
import copyreg
import dis
import enum
import functools
import hashlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["Digest", "Unknown"]

_DIGITS = 16
"""Hexadecimal digits of a digest."""
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, range, type(...))
_NAMED = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_METHODS = (staticmethod, classmethod, property, functools.cached_property)
_WRAPPED = ("__func__", "fget", "fset", "fdel", "func")
"""Attributes in which these store their functions."""


class Unknown(Exception):
    """A value cannot be compared with one of a later process."""


def _captured(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # Not bound yet: the function is still being defined.
            yield name, None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and the code of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@dataclass(frozen=True)
class _Import:
    """A module that code imports when it runs."""

    name: str
    package: str | None


class Digest:
    """Digests of values by their content.

    Args:
        home: the module of the function in question; its package is examined even if it is
            installed.
    """

    def __init__(self, home: str = "") -> None:
        self._home = _top(home)
        self._digests: dict[int, tuple[Any, str]] = {}
        self._within: dict[int, int] = {}
        """The depth of values that are being digested, by `id`: they may refer to themselves."""

    def parts(self, function: Any) -> Iterator[tuple[str, Any]]:
        """Take a function apart, so that a message can say in which parts two functions differ.

        Args:
            function: a function, bound method, partial, or callable object.

        Yields:
            The name of each part, and its value.
        """
        if isinstance(function, types.MethodType):
            yield from self.parts(function.__func__)
            yield "the object it is a method of", function.__self__
        elif isinstance(function, functools.partial):
            yield from self.parts(function.func)
            yield "the partial's arguments", (function.args, function.keywords)
        elif isinstance(function, types.FunctionType):
            yield "code", function.__code__
            yield "defaults", (function.__defaults__, function.__kwdefaults__)
            if function.__dict__:
                yield "attributes", function.__dict__
            for name, value in _captured(function):
                yield f"captured {name!r}", value
            for name, value in self._globals(function):
                yield f"global {name!r}", value
        else:
            yield "value", function

    def _globals(self, function: types.FunctionType) -> list[tuple[str, Any]]:
        """Names that a function looks up outside itself, with their values; of a module, the
        attributes that it uses."""
        seen: dict[str, Any] = {}
        names = function.__globals__
        for code in _codes(function.__code__):
            steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
            for index, step in enumerate(steps):
                if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                    name = str(step.argval)
                    value = names.get(name, getattr(builtins, name, None))
                    for after in steps[index + 1 :]:
                        if after.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not (
                            isinstance(value, types.ModuleType) and not self.library(value.__name__)
                        ):
                            break
                        name, value = f"{name}.{after.argval}", getattr(value, after.argval, None)
                    seen[name] = value
                elif step.opname == "IMPORT_NAME":
                    name = str(step.argval)
                    seen[f"import {name}"] = _Import(name, names.get("__package__"))
        return sorted(seen.items(), key=lambda item: item[0])

    def of(self, value: Any) -> str:
        """Digest a value.

        Args:
            value: any object.

        Returns:
            Hexadecimal digits, equal for equal values.

        Raises:
            Unknown: something in the value cannot be compared with one of a later process.
        """
        if isinstance(value, _PLAIN):
            return _hashed(type(value).__name__, repr(value).encode())
        key = id(value)
        if key in self._within:
            return _hashed("again", str(self._within[key]).encode())
        if key not in self._digests:
            self._within[key] = len(self._within)
            try:
                digest = self._of(value)
            finally:
                del self._within[key]
            # The value is kept, so that no other can get its address, and thus its `id`.
            self._digests[key] = value, digest
        return self._digests[key][1]

    def _all(self, kind: str, *values: Any) -> str:
        return _hashed(kind, *(self.of(value).encode() for value in values))

    def _of(self, value: Any) -> str:
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, _Import):
            return self._imported(value)
        if isinstance(value, types.ModuleType):
            return self._module(value, set())
        if isinstance(value, types.FunctionType):
            if self.library(value.__module__) and not value.__closure__:
                return _named(value)
            parts = [one for part in self.parts(value) for one in part]
            return self._all("function", value.__qualname__, *parts)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.MethodType):
            return self._all("method", value.__func__, value.__self__)
        if isinstance(value, enum.Enum):
            return self._all("enum", type(value).__qualname__, value.name, value.value)
        return self._value(value)

    def _value(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray) and value.dtype != object:
            contiguous = np.ascontiguousarray(value)
            return _hashed("array", f"{value.dtype} {value.shape}".encode(), contiguous.tobytes())
        if type(value) in (tuple, list):
            return self._all(type(value).__name__, *value)
        if type(value) is dict:
            return self._all("dict", *(part for item in value.items() for part in item))
        if type(value) in (set, frozenset):
            return _hashed("set", *(digest.encode() for digest in sorted(map(self.of, value))))
        if isinstance(value, _NAMED):
            owner = getattr(value, "__self__", None)
            bound = owner is not None and not isinstance(owner, types.ModuleType | type)
            return self._all("builtin", value.__qualname__, owner if bound else None)
        wrapped = getattr(value, "__wrapped__", None)
        if callable(value) and callable(wrapped):
            return self._all("wrapped", type(value).__qualname__, wrapped)
        return self._object(value)

    def _object(self, value: Any) -> str:
        """Digest any other object by the parts that pickle would store."""
        kind = type(value)
        try:
            reducer: Callable[[Any], Any] | None = copyreg.dispatch_table.get(kind)
            reduced: Any = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception as error:  # Any class may raise anything.
            raise Unknown(f"holds a {_kind(value)}") from error
        if isinstance(reduced, str):
            if self.library(kind.__module__):
                return _hashed("named", kind.__qualname__.encode(), reduced.encode())
            raise Unknown(f"holds a {_kind(value)}")
        constructor, arguments, *state = reduced
        items = [list(part) if hasattr(part, "__next__") else part for part in state]
        return self._all("object", kind, constructor, arguments, *items)

    def _tensor(self, value: torch.Tensor) -> str:
        try:
            raw = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise Unknown(f"holds a tensor with layout {value.layout}") from error
        return _hashed("tensor", f"{value.dtype} {list(value.shape)}".encode(), raw.tobytes())

    def _code(self, code: types.CodeType) -> str:
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        # File and line numbers are left out: moving code does not change it.
        return self._all("code", code.co_code, code.co_exceptiontable, code.co_consts, names, shape)

    def _class(self, value: type) -> str:
        if self.library(value.__module__):
            return _named(value)
        if issubclass(value, enum.Enum):
            members = [(member.name, member.value) for member in value]
            return self._all("enum class", value.__qualname__, members)
        parts: list[Any] = []
        for name, attribute in sorted(vars(value).items()):
            if isinstance(attribute, types.FunctionType):
                parts += [name, attribute]
            elif isinstance(attribute, _METHODS):
                functions = (getattr(attribute, wrapped, None) for wrapped in _WRAPPED)
                parts += [name, [function for function in functions if function is not None]]
            elif not (isinstance(attribute, _DESCRIPTORS) or name.startswith(("__", "_abc_"))):
                parts += [name, attribute]
        return self._all("class", value.__qualname__, value.__bases__, *parts)

    def _imported(self, value: _Import) -> str:
        try:
            name = importlib.util.resolve_name(value.name, value.package)
        except (ImportError, ValueError):
            name = value.name
        if self.library(name):
            return _hashed("library", name.encode())
        if name in sys.modules:
            return self._module(sys.modules[name], set())
        try:
            spec = importlib.util.find_spec(name)
            source = Path(str(spec and spec.origin)).read_bytes()
        except (ImportError, ValueError, OSError) as error:
            raise Unknown(f"the module {name} is not found") from error
        return _hashed("module", name.encode(), source)

    def _module(self, module: types.ModuleType, seen: set[str]) -> str:
        """Digest a module by its file, and by the files of the modules that it imports from."""
        if self.library(module.__name__):
            return _hashed("library", module.__name__.encode())
        seen.add(module.__name__)
        try:
            source = Path(str(module.__file__)).read_bytes()
        except (AttributeError, OSError) as error:
            raise Unknown(f"the module {module.__name__} has no file") from error
        digests = [_hashed("module", module.__name__.encode(), source)]
        for value in list(vars(module).values()):
            other = value if isinstance(value, types.ModuleType) else _home_of(value)
            if other is not None and other.__name__ not in seen | {"builtins"}:
                digests.append(self._module(other, seen))
        return _hashed("modules", *(digest.encode() for digest in digests))

    def library(self, name: str | None) -> bool:
        """Tell whether a module belongs to a library, which is represented by its name.

        Args:
            name: the module's name.

        Returns:
            True for the standard library, deltalens, and installed packages other than the home of
            the function in question.
        """
        top = _top(name)
        if top in ("deltalens", "builtins") or top in sys.stdlib_module_names:
            return True
        return top != self._home and _installed(top)


def _home_of(value: Any) -> types.ModuleType | None:
    """The module in which a function or class is defined."""
    if not isinstance(value, types.FunctionType | type):
        return None
    return sys.modules.get(value.__module__)


def _top(name: str | None) -> str:
    return (name or "").partition(".")[0]


@functools.cache
def _installed(top: str) -> bool:
    try:
        spec = getattr(sys.modules.get(top), "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    paths = [spec.origin or "", *(spec.submodule_search_locations or ())]
    installed = {"site-packages", "dist-packages"}
    return spec.origin in ("built-in", "frozen") or any(installed & {*Path(p).parts} for p in paths)


def _named(value: Any) -> str:
    return _hashed("library", f"{value.__module__}.{value.__qualname__}".encode())


def _kind(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _hashed(kind: str, *parts: bytes) -> str:
    """The digest of a sequence of parts. The length of each part is included, so that shifting the
    boundary between two parts changes the digest."""
    digest = hashlib.sha256(kind.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:_DIGITS]
