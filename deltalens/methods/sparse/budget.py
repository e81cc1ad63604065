"""How many entries are trained: by density, by share of the model, or as many as a LoRA has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from deltalens.errors import DeltaLensError, fault_list
from deltalens.methods.mask_layers import Layer
from deltalens.names import check_scope, unit_of
from deltalens.numerics.rates import Rate, exact_share

__all__ = ["Budget", "Unit", "plan_budget"]


@dataclass(frozen=True)
class Unit:
    """Weights that are ranked together."""

    name: str
    """What they are called together."""
    weights: tuple[str, ...]
    """Their parameter names."""
    size: int
    """Entries of all of them."""
    count: int
    """How many of those are trained."""


@dataclass(frozen=True)
class Budget:
    """How many entries of which weights are trained, and what share that is."""

    units: tuple[Unit, ...]
    model_parameters: int
    """Parameters of the model, a tied one once."""

    @property
    def trained(self) -> int:
        """The number of trained entries."""
        return sum(unit.count for unit in self.units)

    @property
    def adapted(self) -> int:
        """Entries of the adapted weights."""
        return sum(unit.size for unit in self.units)

    @property
    def density(self) -> float:
        """The share of the adapted weights that is trained."""
        return self.trained / self.adapted

    @property
    def share_of_model(self) -> float:
        """The share of the model's parameters that is trained."""
        return self.trained / self.model_parameters

    @property
    def share_with_adapter(self) -> float:
        """The same as peft prints it: of the model's parameters and the trained ones."""
        return self.trained / (self.model_parameters + self.trained)

    def __str__(self) -> str:
        return (
            f"{self.trained:,} entries trained: {self.density:.3%} of the adapted weights, "
            f"{self.share_of_model:.3%} of the model ({self.share_with_adapter:.3%} with the "
            "adapter counted in, as peft prints it)"
        )


def plan_budget(
    model: nn.Module,
    layers: Sequence[Layer],
    *,
    density: Rate | None = None,
    like_lora: int | None = None,
    of_model: Rate | None = None,
    scope: str = "global",
) -> Budget:
    """Count how many entries are trained.

    Only shapes are read, so the model may be on the meta device.

    Args:
        model: the model.
        layers: the adapted layers.
        density: the share of the adapted weights, in (0, 1]: round(density * n) of each unit's n.
        like_lora: a rank r: as many as LoRA's matrices have on these layers, r * (inputs + outputs)
            of each.
        of_model: the share of all the model's parameters. Exactly one of the three is given.
        scope: what is ranked together: `global`, `layer` (a block), `tensor` (the paper's local
            masks).

    Returns:
        The budget.

    Raises:
        DeltaLensError: not one of the three, a value out of range, or so few that a unit gets no
            entry.
    """
    given = {"density": density, "like_lora": like_lora, "of_model": of_model}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        named = ", ".join(f"{name}={given[name]}" for name in chosen) or "none"
        raise DeltaLensError(f"give one of density, like_lora and of_model; given: {named}")
    if like_lora is not None and not (type(like_lora) is int and like_lora > 0):
        raise DeltaLensError(f"like_lora={like_lora!r}: a LoRA rank, a whole number above 0")
    ranked = check_scope(scope)
    members: dict[str, list[Layer]] = {}
    for layer in layers:
        members.setdefault(unit_of(layer.weight_name, ranked), []).append(layer)
    total = sum(parameter.numel() for parameter in model.parameters())
    adapted = sum(layer.entries for layer in layers)
    share = _density(density, of_model, total, adapted)
    units = []
    for name, group in members.items():
        size = sum(layer.entries for layer in group)
        count = (
            round(share * size) if like_lora is None else sum(_lora(x, like_lora) for x in group)
        )
        shown = "the adapted weights" if scope == "global" else name
        units.append(Unit(shown, tuple(layer.weight_name for layer in group), size, count))
    _check(units, scope, " ".join(f"{name}={given[name]}" for name in chosen))
    return Budget(tuple(units), total)


def _density(density: Rate | None, of_model: Rate | None, total: int, adapted: int) -> Fraction:
    """The exact density that is wanted; 0 if neither share is given."""
    name, value = ("density", density) if of_model is None else ("of_model", of_model)
    if value is None:
        return Fraction(0)
    share = exact_share(value, name)
    if not share:
        raise DeltaLensError(f"{name} {value}: must be above 0, and at most 1")
    if of_model is None:
        return share
    wanted = share * total / adapted
    if wanted > 1:
        raise DeltaLensError(
            f"of_model {value}: the adapted weights are only {adapted / total:.3%} of the model; "
            "adapt more (targets), or train less"
        )
    return wanted


def _lora(layer: Layer, rank: int) -> int:
    return rank * sum(layer.module.get_parameter("weight").shape)


def _check(units: Sequence[Unit], scope: str, given: str) -> None:
    if empty := [f"{unit.name} ({unit.size:,} entries)" for unit in units if not unit.count]:
        raise DeltaLensError(
            fault_list(f"{given}: so few that nothing is trained in", empty)
            + ("" if scope == "global" else "; train more, or rank all together (scope='global')")
        )
    if over := [
        f"{unit.name}: {unit.count:,} of {unit.size:,}" for unit in units if unit.count > unit.size
    ]:
        raise DeltaLensError(fault_list(f"{given}: more than there is", over))
