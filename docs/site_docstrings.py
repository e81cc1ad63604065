"""Docstrings as the site shows them: every option of a function, and examples as code."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import griffe

from deltalens.api.described import Parameter, parameters_of

__all__ = ["Docstrings", "apart", "options_of", "type_text"]

_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)
"""`ft, base: checkpoints`, with the lines that go on."""
_MODULE = re.compile(r"\b(?:pathlib|collections\.abc|typing)\.")


class Docstrings(griffe.Extension):
    """Read by mkdocstrings before a page is made."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Write the docstring anew, in the words that griffe knows."""
        if obj.docstring is None:
            return
        text = apart(obj.docstring.value)
        if isinstance(obj, griffe.Function) and "described" in {
            str(each.callable_path).rpartition(".")[2] for each in obj.decorators
        }:
            module, _, name = obj.path.rpartition(".")
            function = getattr(importlib.import_module(module), name)
            text = _with_options(text, obj, parameters_of(function))
        obj.docstring.value = text


def apart(text: str) -> str:
    """Arguments that are described together, each by itself; an example under griffe's own title.

    Args:
        text: of a docstring.

    Returns:
        The same, in the form that griffe reads.
    """

    def each(found: re.Match[str]) -> str:
        indent, names, said = found.groups()
        return "\n".join(f"{indent}{name}: {said}" for name in names.split(", "))

    return re.sub(r"^Example:$", "Examples:", _SHARED.sub(each, text), flags=re.MULTILINE)


def type_text(kind: Any) -> str:
    """A type as a reader writes it.

    Args:
        kind: the type.

    Returns:
        Its text, without the modules that everybody knows.
    """
    return _MODULE.sub("", inspect.formatannotation(kind))


def options_of(known: Mapping[str, Parameter]) -> str:
    """A table, folded, of the options that many functions share.

    Args:
        known: a name -> the parameter.

    Returns:
        Markdown.
    """
    rows = ["| option | type | what it is | default |", "| --- | --- | --- | --- |"]
    for name, each in known.items():
        cells = (f"`{name}`", f"`{type_text(each.kind)}`", each.said.about, f"`{each.default!r}`")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([f'??? info "{len(known)} more options"', "", *(f"    {row}" for row in rows)])


def _with_options(text: str, function: griffe.Function, known: Mapping[str, Parameter]) -> str:
    """Give the parameters their types, and write the others before what is returned."""
    own = {each.name for each in function.parameters}
    for each in function.parameters:
        if each.name in known:
            each.annotation = type_text(known[each.name].kind)
    others = {name: each for name, each in known.items() if name not in own}
    if not others:
        return text
    before, returns, after = text.partition("\nReturns:")
    return f"{before}\n{options_of(others)}\n{returns}{after}"
