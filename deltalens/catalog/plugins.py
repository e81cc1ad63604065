"""What installed packages add, by the entry points in their metadata: metrics, kinds of studies,
and executors. Nothing of a package is imported before it is used."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from deltalens.errors import DeltaLensError, describe_error

__all__ = ["Plugin", "find", "load_code", "plugins"]

What = Literal["metric", "study", "executor"]
_GROUPS: dict[What, str] = {
    "metric": "deltalens.metrics",
    "study": "deltalens.studies",
    "executor": "deltalens.executors",
}


@dataclass(frozen=True)
class Plugin:
    """What a package adds."""

    what: What
    name: str
    package: str
    version: str
    value: str
    """Where it stands: `module:name`."""

    def __str__(self) -> str:
        return f"{self.what} {self.name!r} of {self.package} {self.version}".rstrip()

    def load(self) -> Any:
        """The object.

        Raises:
            DeltaLensError: it cannot be imported; names the package.
        """
        return load_code(self.value, str(self))


def plugins(what: What, ours: Collection[str], name: str | None = None) -> dict[str, list[Plugin]]:
    """All that packages add, by name: several under a name that several packages have.

    Args:
        what: is added.
        ours: names that are taken; what a package calls so is passed over, with a warning.
        name: of the one that is looked for; None: all.
    """
    found: dict[str, list[Plugin]] = {}
    points = entry_points(group=_GROUPS[what])
    for point in points if name is None else points.select(name=name):
        one = _plugin(what, point)
        if one.name in ours:
            warnings.warn(f"{one}: passed over, as deltalens has one of this name", stacklevel=2)
        elif one not in (same := found.setdefault(one.name, [])):
            same.append(one)
    return found


def find(what: What, name: str, ours: Collection[str]) -> Plugin | None:
    """What a package adds under a name; None where no package does.

    Raises:
        DeltaLensError: several packages do.
    """
    same = plugins(what, ours, name).get(name, [])
    if len(same) > 1:
        packages = ", ".join(sorted(one.package for one in same))
        raise DeltaLensError(
            f"{what} {name!r}: of several packages: {packages}; uninstall all but one"
        )
    return same[0] if same else None


def _plugin(what: What, point: EntryPoint) -> Plugin:
    dist = point.dist
    package, version = (dist.name, dist.version) if dist is not None else (point.module, "")
    return Plugin(what, point.name, package, version, point.value)


def load_code(place: str, said: str = "") -> Any:
    """What stands at `module:name`.

    Args:
        place: where.
        said: what that is, for messages.

    Raises:
        DeltaLensError: it cannot be imported, whatever the reason.
    """
    module, _, name = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # A package's own: of any kind.
        raise DeltaLensError(
            f"{said or place}: cannot be loaded: {describe_error(error)}"
        ) from error
    return found
