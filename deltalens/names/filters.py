"""What is ranked together, and which names a filter selects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

from deltalens.errors import DeltaLensError, similar_names
from deltalens.names.blocks import block_of

__all__ = ["SCOPES", "NameFilter", "Scope", "check_scope", "unit_of"]

Scope = Literal["tensor", "layer", "global"]
"""Which entries are ranked together: those of one tensor, of one transformer block, or of all
tensors."""
SCOPES: tuple[Scope, ...] = get_args(Scope)


def unit_of(name: str, scope: Scope) -> str:
    """Return the ranking unit of a parameter: parameters with the same unit are ranked together.

    Outside the blocks, scope `layer` ranks every parameter on its own.

    Args:
        name: a parameter's name.
        scope: what is ranked together.

    Returns:
        The parameter's name, its block's name, or `all`.
    """
    if scope == "tensor":
        return name
    return block_of(name) if scope == "layer" else "all"


def check_scope(scope: str) -> Scope:
    """Check a scope given as text.

    Args:
        scope: `tensor`, `layer` or `global`.

    Returns:
        The scope.

    Raises:
        DeltaLensError: the text is none of the three.
    """
    for valid in SCOPES:
        if scope == valid:
            return valid
    raise DeltaLensError(f"scope {scope!r}: choose one of {', '.join(SCOPES)}")


class NameFilter:
    """Select names by regular expressions.

    `name in filter` tells whether a single name is selected, and remembers the answer.

    Args:
        include: a name must match this regular expression somewhere; None: all names do.
        exclude: a name must not match this regular expression anywhere; None: none does.

    Raises:
        DeltaLensError: a pattern is not a valid regular expression.
    """

    def __init__(self, include: str | None = None, exclude: str | None = None) -> None:
        self._patterns = {
            option: pattern
            for option, pattern in (("include", include), ("exclude", exclude))
            if pattern is not None
        }
        compiled = {option: _compiled(option, text) for option, text in self._patterns.items()}
        self._include, self._exclude = compiled.get("include"), compiled.get("exclude")
        self._cache: dict[str, bool] = {}

    def matches(self, *names: str) -> bool:
        """Tell whether an object that goes by several names is selected.

        Args:
            names: all names of the object.

        Returns:
            True if at least one name matches `include` and none matches `exclude`.
        """
        include, exclude = self._include, self._exclude
        return (include is None or any(include.search(name) for name in names)) and not (
            exclude is not None and any(exclude.search(name) for name in names)
        )

    def __contains__(self, name: str) -> bool:
        """Whether a single name is selected; cached, as it is called in every training step."""
        selected = self._cache.get(name)
        if selected is None:
            selected = self._cache[name] = self.matches(name)
        return selected

    def explain_no_match(self, names: Iterable[str], what: str) -> str:
        """Build the error message for a filter that selects nothing.

        Args:
            names: the names that exist; the nearest ones are suggested.
            what: what the names are names of, such as `parameter`.

        Returns:
            One line of text.
        """
        if not self._patterns:
            return f"there is no {what}"
        patterns = " and ".join(f"{option} {text!r}" for option, text in self._patterns.items())
        verb = "leave" if len(self._patterns) > 1 else "matches" if self._include else "leaves"
        existing = list(names)
        similar = similar_names(next(iter(self._patterns.values())), existing, 3, 0.1)
        shown = ", ".join(similar or existing[:3])
        return f"{patterns} {verb} no {what}" + (
            f"; there are names such as {shown}" if shown else ""
        )


def _compiled(option: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise DeltaLensError(
            f"{option}: {pattern!r} is not a valid regular expression: {error}"
        ) from error
