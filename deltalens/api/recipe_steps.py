"""A step of a recipe as the call of a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deltalens.api import deltas, records, salience, studies, sweeps, training
from deltalens.api.described import Arg, parameters_of
from deltalens.api.steps import Step
from deltalens.errors import DeltaLensError, similar_names
from deltalens.recipes import PlannedStep

if TYPE_CHECKING:
    from deltalens.training.methods import Method

__all__ = ["as_step"]

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "inspect": deltas.inspect,
    "drop": deltas.drop,
    "monitor": records.monitor,
    "train": training.train,
    "efficiency": training.efficiency,
    "drop-study": studies.drop_study,
    "evaluate": studies.evaluate,
    "landscape": studies.scan_landscape,
    "salience": salience.salience_study,
    "compare": sweeps.compare,
    "sweep mask-ratio": sweeps.sweep_mask_ratio,
    "sweep data-ratio": sweeps.sweep_data_ratio,
    "sweep layers": sweeps.sweep_layers,
    "sweep density": sweeps.sweep_density,
    "sweep masks": sweeps.sweep_masks,
    "sweep layers-drop": studies.sweep_layers_drop,
}
"""The commands that a recipe may have."""


def as_step(step: PlannedStep) -> Step:
    """A planned step as the call of a function.

    Args:
        step: of deltalens, not of another owner.

    Returns:
        The call.

    Raises:
        DeltaLensError: no such command, or one without such an option; names the nearest.
    """
    command = " ".join(step.command)
    if command not in _FUNCTIONS:
        raise _unknown(step, f"no command {command!r}", command, _FUNCTIONS)
    function = _FUNCTIONS[command]
    known = parameters_of(function)
    places = [name for name, each in known.items() if isinstance(each.said, Arg)]
    arguments = _positional(step, known, places)
    method = arguments.get("method")
    settings: dict[str, Any] = {}
    for typed, value in step.options.items():
        name = typed.replace("-", "_")
        if name in known and name not in places:
            arguments[name] = value
        elif method is not None and name in _own_settings(method):
            settings[name] = value
        else:
            options = [each for each in known if each not in places]
            raise _unknown(step, f"{command} has no option {typed!r}", name, options)
    if "out" in known:
        arguments["out"] = step.folder
    if settings:
        arguments["settings"] = settings
    return Step(step.why, function, arguments)


def _positional(
    step: PlannedStep, known: Mapping[str, Any], places: Sequence[str]
) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    given = [*step.arguments]
    for name in places:
        if not given:
            break
        arguments[name] = given if known[name].said.repeat else given.pop(0)
        if known[name].said.repeat:
            given = []
    if given:
        raise DeltaLensError(f"{step.name}: too many arguments: {' '.join(given)}")
    return arguments


def _own_settings(method: str | Method) -> Mapping[str, Any]:
    from deltalens.training.methods import method_class

    own: Mapping[str, Any] = method_class(str(method)).own_settings()
    return own


def _unknown(step: PlannedStep, message: str, name: str, known: Any) -> DeltaLensError:
    near = similar_names(name, known, 1, 0.6)
    hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
    return DeltaLensError(f"{step.name}: {message}{hint}")
