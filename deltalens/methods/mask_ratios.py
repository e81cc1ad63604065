"""The fraction of each layer that a mask removes: one ratio for all layers, or by kind, projection
and block."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from deltalens.errors import DeltaLensError, fault_list
from deltalens.methods.mask_layers import MODULES, Layer, block_numbers
from deltalens.numerics.rates import exact_rate, show_rate

__all__ = ["Ratio", "Ratios", "describe_ratios", "ratios_of"]

Ratio = float | str | Fraction
Ratios = Ratio | Mapping[Any, Ratio]
"""One ratio for all layers, or a mapping from layers to ratios, as `ratios_of` takes it."""

_PROJECTION = re.compile(r"_proj$")
_KEY = re.compile(r"(?:(?P<blocks>\d+(?:-\d+)?)(?:\.|$))?(?P<name>.*)")


@dataclass(frozen=True)
class _Rule:
    """A ratio and the layers it applies to."""

    key: str
    ratio: Fraction
    blocks: frozenset[int] | None
    """Block numbers; None stands for all."""
    name: str
    """A kind, or the last components of a layer's name; empty stands for all."""

    def applies_to(self, layer: Layer) -> bool:
        """Whether the ratio applies to a layer."""
        if self.blocks is not None and layer.block not in self.blocks:
            return False
        if self.name in ("", layer.kind):
            return True
        # `q` names `q_proj`, but `c` does not name GPT-2's `c_proj`.
        names = {layer.name, _PROJECTION.sub("", layer.name)}
        return any(f".{name}".endswith(f".{self.name}") for name in names)

    def more_specific_than(self, other: _Rule) -> bool:
        """Whether this rule describes its layers more specifically than another does."""
        own, theirs = self._specificity(), other._specificity()
        return own != theirs and all(a >= b for a, b in zip(own, theirs, strict=True))

    def _specificity(self) -> tuple[int, int]:
        name_depth = 0 if not self.name else 1 if self.name in MODULES else 2 + self.name.count(".")
        return int(self.blocks is not None), name_depth


def ratios_of(mask_ratio: Ratios, layers: Sequence[Layer]) -> dict[str, Fraction]:
    """Determine the mask ratio of each layer.

    Args:
        mask_ratio: the fraction removed, in (0, 1). One number applies to all layers. The keys of a
            mapping name layers by kind (`attention`, `mlp`), by projection (`q` or `q_proj`,
            `mlp.down`: the end of a layer's name), by block (`4`, `4-7`), or by block and one of
            the others (`4-7.q`, `0.mlp`); an empty key stands for all layers that no other key
            names. The most specific key wins.
        layers: the layers that are masked.

    Returns:
        Layer name -> its exact ratio.

    Raises:
        DeltaLensError: a ratio is outside (0, 1), a key names no masked layer, a layer is named by
            no key, or two keys name a layer equally specifically.

    Example:
        Of eight blocks, q_proj loses 20 % everywhere and down_proj 5 % in the last four:

        ratios_of({"": "0.1", "q": "0.2", "4-7.down": "0.05"}, layers)
    """
    by_key = mask_ratio if isinstance(mask_ratio, Mapping) else {"": mask_ratio}
    rules = [_rule(str(key).strip(), ratio) for key, ratio in by_key.items()]
    _refuse_unused(rules, layers)
    faults, ratios = [], {}
    for layer in layers:
        fitting = [rule for rule in rules if rule.applies_to(layer)]
        most_specific = [
            rule
            for rule in fitting
            if all(rule is other or rule.more_specific_than(other) for other in fitting)
        ]
        if most_specific:
            ratios[layer.name] = most_specific[0].ratio
        elif fitting:
            keys = " and ".join(repr(rule.key) for rule in fitting)
            faults.append(
                f"{layer.name}: the keys {keys} are equally specific; add a more specific one"
            )
        else:
            faults.append(f"{layer.name}: no key applies")
    if faults:
        keys = ", ".join(repr(key) for key in sorted(rule.key for rule in rules))
        has = f"has the keys {keys}" if keys else "has no keys"
        kinds = ", ".join(sorted({layer.kind for layer in layers}))
        raise DeltaLensError(
            fault_list(f"mask_ratio {has}, but {kinds} layers are masked:", faults)
        )
    return ratios


def _rule(key: str, ratio: Ratio) -> _Rule:
    exact = exact_rate(ratio, "mask_ratio")
    if not 0 < exact < 1:
        raise DeltaLensError(f"mask_ratio {ratio}{f' ({key})' if key else ''} is outside (0, 1)")
    parts = _KEY.fullmatch(key)
    assert parts is not None
    blocks = parts["blocks"]
    numbers = frozenset(block_numbers(blocks)) if blocks is not None else None
    return _Rule(key, exact, numbers, parts["name"])


def _refuse_unused(rules: Sequence[_Rule], layers: Sequence[Layer]) -> None:
    unused = [rule.key for rule in rules if not any(rule.applies_to(layer) for layer in layers)]
    if unused:
        names = sorted({_PROJECTION.sub("", layer.name.rpartition(".")[2]) for layer in layers})
        numbers = {number for layer in layers if (number := layer.block) is not None}
        blocks = f", blocks {min(numbers)} to {max(numbers)}" if numbers else ""
        raise DeltaLensError(
            f"mask_ratio for {', '.join(unused)}: no masked layer has that name; the names are "
            f"{', '.join(sorted({layer.kind for layer in layers}))}; {', '.join(names)}{blocks}"
        )


def describe_ratios(mask_ratio: Ratios, layers: Sequence[Layer]) -> dict[str, str]:
    """Describe mask ratios for the metadata of a mask file.

    Args:
        mask_ratio: as in `ratios_of`.
        layers: the layers that are masked.

    Returns:
        Kind -> ratio as text if one ratio holds for all layers; otherwise the given keys -> ratios.
    """
    if isinstance(mask_ratio, Mapping):
        return {str(key): show_rate(exact_rate(ratio)) for key, ratio in mask_ratio.items()}
    return dict.fromkeys(
        sorted({layer.kind for layer in layers}), show_rate(exact_rate(mask_ratio))
    )
