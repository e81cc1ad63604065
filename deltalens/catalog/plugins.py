"""What installed packages add, by the entry points in their metadata: metrics, kinds of studies,
executors and training methods. Nothing of a package is imported before it is used."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from deltalens.errors import DeltaLensError, describe_error

__all__ = ["Plugin", "find", "load_code", "plugins"]

What = Literal["metric", "study", "executor", "method"]
_GROUPS: dict[What, str] = {
    "metric": "deltalens.metrics",
    "study": "deltalens.studies",
    "executor": "deltalens.executors",
    "method": "deltalens.methods",
}


@dataclass(frozen=True)
class Plugin:
    """Something that an installed package adds."""

    what: What
    name: str
    package: str
    version: str
    value: str
    """Where its code is: `module:name`."""

    def __str__(self) -> str:
        return f"{self.what} {self.name!r} of {self.package} {self.version}".rstrip()

    def load(self) -> Any:
        """Import it.

        Returns:
            The object that the entry point names.

        Raises:
            DeltaLensError: it cannot be imported; the message names the package.
        """
        return load_code(self.value, str(self))


def plugins(what: What, ours: Collection[str], name: str | None = None) -> dict[str, list[Plugin]]:
    """List what installed packages add.

    Args:
        what: the kind of thing.
        ours: deltalens' own names; a package's thing of such a name is ignored, with a warning.
        name: list only things of this name; None lists all.

    Returns:
        Name -> the plugins of that name: several if several packages use it.
    """
    by_name: dict[str, list[Plugin]] = {}
    points = entry_points(group=_GROUPS[what])
    for point in points if name is None else points.select(name=name):
        plugin = _plugin(what, point)
        if plugin.name in ours:
            warning = f"{plugin}: ignored, as deltalens itself has one of this name"
            warnings.warn(warning, stacklevel=2)
        elif plugin not in (same_name := by_name.setdefault(plugin.name, [])):
            same_name.append(plugin)
    return by_name


def find(what: What, name: str, ours: Collection[str]) -> Plugin | None:
    """Find what an installed package adds under a name.

    Args:
        what: the kind of thing.
        name: its name.
        ours: deltalens' own names.

    Returns:
        The plugin; None if no package adds one of this name.

    Raises:
        DeltaLensError: several packages add one.
    """
    same_name = plugins(what, ours, name).get(name, [])
    if len(same_name) > 1:
        packages = ", ".join(sorted(plugin.package for plugin in same_name))
        raise DeltaLensError(
            f"{what} {name!r}: added by several packages ({packages}); uninstall all but one"
        )
    return same_name[0] if same_name else None


def _plugin(what: What, point: EntryPoint) -> Plugin:
    dist = point.dist
    package, version = (dist.name, dist.version) if dist is not None else (point.module, "")
    return Plugin(what, point.name, package, version, point.value)


def load_code(reference: str, description: str = "") -> Any:
    """Import an object by its name.

    Args:
        reference: `module:name`.
        description: what it is, for the error message; by default the reference.

    Returns:
        The object.

    Raises:
        DeltaLensError: it cannot be imported, whatever the reason.
    """
    module, _, name = reference.partition(":")
    try:
        loaded: Any = importlib.import_module(module)
        for part in name.split("."):
            loaded = getattr(loaded, part)
    except Exception as error:  # A package's code can raise anything.
        raise DeltaLensError(
            f"{description or reference}: cannot be loaded: {describe_error(error)}"
        ) from error
    return loaded
