"""The recipes that come with deltalens, by name and by figure."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from deltalens.errors import DeltaLensError, errors_from, fault_list, similar_names
from deltalens.recipes.schema import Recipe
from deltalens.recipes.strict import Faults, read_as

__all__ = ["load_recipe", "recipe_names", "recipes_for"]

_FILES = ("deltalens.figures", "recipes")
_SHARED = "shared"
_LARGEST = 1 << 20
"""Bytes of a recipe file."""
_MERGED = ("models", "data", "tasks", "settings", "steps")
"""Parts in which a recipe adds to what it includes; the others it replaces."""


def recipe_names() -> list[str]:
    """Name the recipes.

    Returns:
        Their names, sorted by paper, then figures before tables.
    """
    found = (each.name for each in _folder().iterdir() if each.name.endswith(".yaml"))
    return sorted((name.removesuffix(".yaml") for name in found), key=_order)


def load_recipe(name: str) -> Recipe:
    """Read one of the recipes.

    Args:
        name: of `recipe_names`; or the path of a file, which may include ours.

    Returns:
        The recipe.

    Raises:
        DeltaLensError: there is none of this name; or the file is no recipe: every fault of it is
            named, unknown keys with the nearest known one.
    """
    return _load(Path(name)) if name.endswith(".yaml") else _ours(name)


def recipes_for(names: Iterable[str]) -> list[tuple[Recipe, tuple[str, ...]]]:
    """The recipes of some names of recipes or figures.

    Args:
        names: of recipes, figures or tables. Twins share a recipe: it is there once.

    Returns:
        Each recipe with the figures that were named; none if the recipe itself was.

    Raises:
        DeltaLensError: an unknown name; names the nearest.
    """
    known = recipe_names()
    homes: dict[str, str] | None = None
    wanted: dict[str, list[str] | None] = {}
    for name in names:
        if name in known or name.endswith(".yaml"):
            wanted[name] = None
            continue
        if homes is None:
            homes = {}
            for each in known:
                for figure in load_recipe(each).makes:
                    homes.setdefault(figure, each)
        if name not in homes:
            raise _unknown(name, [*known, *homes])
        figures = wanted.setdefault(homes[name], [])
        if figures is not None:
            figures.append(name)
    return [(load_recipe(name), tuple(figures or ())) for name, figures in wanted.items()]


@functools.cache
def _ours(name: str) -> Recipe:
    file = _folder() / f"{name}.yaml"
    if not file.is_file():
        raise _unknown(name, recipe_names())
    return _load(file)


def _load(file: Traversable) -> Recipe:
    if not file.is_file():
        raise DeltaLensError(f"{file}: no such file")
    faults = Faults()
    raw = {**_with_included(file), "name": file.name.removesuffix(".yaml")}
    recipe = read_as(Recipe, raw, "", faults)
    if recipe is None:
        raise DeltaLensError(fault_list(f"{file.name}: not a recipe:", faults))
    return recipe


def _order(name: str) -> tuple[str, bool, int, str]:
    paper, _, rest = name.partition("-")
    digits = "".join(filter(str.isdigit, rest))
    return paper, rest.startswith("tab"), int(digits or 99), name


def _folder() -> Traversable:
    package, folder = _FILES
    return resources.files(package) / folder


def _unknown(name: str, known: Iterable[str]) -> DeltaLensError:
    known = [*dict.fromkeys(known)]
    near = similar_names(name, known, 3, 0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return DeltaLensError(f"no recipe or figure is called {name!r}; {hint}")


def _with_included(file: Traversable) -> dict[str, Any]:
    """A file's mapping, on top of what it includes."""
    raw = _read(file)
    included = raw.pop("includes", None)
    if included is None:
        return raw
    below = _shared(str(included))
    if below is None:
        raise DeltaLensError(f"{file.name}: includes {included!r}, which does not exist")
    merged = {**below, **raw}
    for part in _MERGED:
        parts = [each.get(part) or {} for each in (below, raw)]
        if all(isinstance(each, Mapping) for each in parts):
            merged[part] = {**parts[0], **parts[1]}
    return merged


@functools.cache
def _shared(name: str) -> dict[str, Any] | None:
    """What several recipes include; None if there is nothing of this name."""
    file = _folder() / _SHARED / f"{name}.yaml"
    return _read(file) if file.is_file() else None


def _read(file: Traversable) -> dict[str, Any]:
    import yaml

    content = file.read_bytes()
    if len(content) > _LARGEST:
        raise DeltaLensError(f"{file.name}: larger than a recipe would be")
    with errors_from("yaml", f"{file.name}: not YAML"):
        raw = yaml.safe_load(content.decode("utf-8"))
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise DeltaLensError(f"{file.name}: not a mapping of names")
    return raw
