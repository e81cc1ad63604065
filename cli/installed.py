"""Commands that installed packages bring: one for each kind of study that has one."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import typer
from typer.core import TyperCommand

from deltalens.catalog.plugins import Plugin, find, load_code, plugins
from deltalens.catalog.studies import STUDIES, study_in
from deltalens.cli import console
from deltalens.errors import DeltaLensError

__all__ = ["command_of", "names"]


def names(ours: Collection[str]) -> list[str]:
    """Name the kinds of studies that packages add; nothing is imported.

    Args:
        ours: our own commands, whose names are taken.

    Returns:
        Their names, sorted.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        kinds = sorted(plugins("study", {*ours, *STUDIES}))
    for warning in warned:
        console.say(warning.message, err=True, before="deltalens: ")
    return kinds


def command_of(name: str, ours: Collection[str]) -> TyperCommand | None:
    """Find the command of a package's kind of study.

    Args:
        name: of the kind.
        ours: our own commands, whose names are taken.

    Returns:
        The command, which is imported when it runs; None if no package has such a kind.

    Raises:
        DeltaLensError: several packages have it.
    """
    plugin = find("study", name, {*ours, *STUDIES})
    return _Installed(plugin) if plugin else None


class _Installed(TyperCommand):
    """Stands for a package's command, which is imported when it is run."""

    def __init__(self, plugin: Plugin) -> None:
        about = f"A study of the package {plugin.package}."
        super().__init__(plugin.name, help=about, short_help=about)
        self._plugin = plugin

    def make_context(self, *given: Any, **more: Any) -> Any:
        return _loaded(self._plugin).make_context(*given, **more)


def _loaded(plugin: Plugin) -> Any:
    place = study_in(plugin).command
    if not place:
        raise DeltaLensError(
            f"{plugin}: brings no command; `deltalens plot FOLDER` draws such a study"
        )
    made = load_code(place, str(plugin))
    if not isinstance(made, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(made)
        made = app
    return typer.main.get_command(made)
