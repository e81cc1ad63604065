"""`--options FILE`: a command's options from a YAML file; what is typed goes first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from deltalens.errors import DeltaLensError, errors_from, fault_list, similar_names

__all__ = ["options_file_option", "read_options_file"]

_LARGEST = 1 << 20
"""Bytes of such a file."""


def options_file_option() -> Any:
    """The option that reads such a file before the others are looked at.

    Returns:
        A typer option for a parameter that may be None.
    """
    return typer.Option(
        "--options",
        metavar="YAML",
        help="Options from a file; those typed win.",
        is_eager=True,
        callback=_take,
    )


def _take(context: typer.Context, file: str | None) -> str | None:
    if file is not None:
        context.default_map = {**(context.default_map or {}), **_for(context, Path(file))}
    return file


def _for(context: typer.Context, file: Path) -> dict[str, Any]:
    """The file's options as the command's parameters."""
    parameters: dict[str, Any] = {}
    for each in context.command.params:
        parameters[str(each.name)] = each
        for flag in each.opts:
            if flag.startswith("--"):
                parameters[flag.removeprefix("--").replace("-", "_")] = each
    found, unknown = {}, []
    for given, value in read_options_file(file).items():
        parameter = parameters.get(given.replace("-", "_"))
        if parameter is None or parameter.is_eager:
            near = similar_names(given, [*parameters], 1, 0.6)
            unknown.append(f"{given}: unknown{f'; did you mean {near[0]}?' if near else ''}")
        else:
            found[str(parameter.name)] = _as_typed(parameter, value)
    if unknown:
        raise DeltaLensError(
            fault_list(f"{file}: options that this command does not have:", unknown)
        )
    return found


def _as_typed(parameter: Any, value: Any) -> Any:
    """A value of the file as it would be typed: a list for what repeats, else with commas."""
    if getattr(parameter, "multiple", False):
        if isinstance(value, Mapping):
            return [f"{name}={each}" for name, each in value.items()]
        return [str(each) for each in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value


def read_options_file(file: Path) -> dict[str, Any]:
    """The options that a YAML file holds.

    Args:
        file: a mapping of options (with or without dashes) to values.

    Returns:
        Name as written -> value.

    Raises:
        DeltaLensError: it cannot be read, or is no mapping.
    """
    import yaml

    from deltalens.io.files import read_bounded

    content = read_bounded(file, _LARGEST, "options file", DeltaLensError)
    with errors_from("yaml", f"{file}: not YAML"):
        options = yaml.safe_load(content.decode("utf-8-sig"))
    if options is None:
        return {}
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise DeltaLensError(f"{file}: not a mapping of options to values")
    return options
