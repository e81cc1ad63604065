"""How much of each layer a mask removes: one ratio for all, or by kind, projection and block."""

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
"""One for all layers; or which layers -> theirs, as `ratios_of` takes it."""

_PROJECTION = re.compile(r"_proj$")
_KEY = re.compile(r"(?:(?P<blocks>\d+(?:-\d+)?)(?:\.|$))?(?P<name>.*)")


@dataclass(frozen=True)
class _Rule:
    """A ratio, and the layers it is for."""

    key: str
    ratio: Fraction
    blocks: frozenset[int] | None
    """None: all."""
    name: str
    """A kind, or the last parts of a layer's name; empty: all."""

    def fits(self, layer: Layer) -> bool:
        """Whether the layer is one of them."""
        if self.blocks is not None and layer.block not in self.blocks:
            return False
        if self.name in ("", layer.kind):
            return True
        # Of GPT-2's `c_proj` `c` is no name, but of `q_proj` `q` is.
        names = {layer.name, _PROJECTION.sub("", layer.name)}
        return any(f".{name}".endswith(f".{self.name}") for name in names)

    def before(self, other: _Rule) -> bool:
        """Whether it says more precisely than another which layers it is for."""
        mine, others = self._precision(), other._precision()
        return mine != others and all(a >= b for a, b in zip(mine, others, strict=True))

    def _precision(self) -> tuple[int, int]:
        named = 0 if not self.name else 1 if self.name in MODULES else 2 + self.name.count(".")
        return int(self.blocks is not None), named


def ratios_of(mask_ratio: Ratios, layers: Sequence[Layer]) -> dict[str, Fraction]:
    """The mask ratio of each layer.

    Args:
        mask_ratio: in (0, 1): one for all, or which layers -> theirs. Those are named by kind
            (`attention`, `mlp`), by projection (`q` or `q_proj`, `mlp.down`: the end of a layer's
            name), by block (`4`, `4-7`), or by both (`4-7.q`, `0.mlp`); `` is all that no other
            names. The more precise one counts.
        layers: that are masked.

    Returns:
        Layer's name -> its ratio.

    Raises:
        DeltaLensError: a ratio outside (0, 1); names that no masked layer has; a layer that none
            names, or that two do equally precisely.

    Example:
        >>> ratios_of({"": "0.1", "q": "0.2", "4-7.down": "0.05"}, layers)
    """
    given = mask_ratio if isinstance(mask_ratio, Mapping) else {"": mask_ratio}
    rules = [_rule(str(key).strip(), ratio) for key, ratio in given.items()]
    _refuse_unused(rules, layers)
    faults, found = [], {}
    for layer in layers:
        fitting = [rule for rule in rules if rule.fits(layer)]
        best = [one for one in fitting if all(one is o or one.before(o) for o in fitting)]
        if best:
            found[layer.name] = best[0].ratio
        elif fitting:
            keys = " and ".join(rule.key or "the one for all" for rule in fitting)
            faults.append(f"{layer.name}: {keys} are equally precise; name it more precisely")
        else:
            faults.append(f"{layer.name}: has none")
    if faults:
        named = ", ".join(sorted(rule.key for rule in rules)) or "nothing"
        kinds = ", ".join(sorted({layer.kind for layer in layers}))
        raise DeltaLensError(
            fault_list(f"mask_ratio names {named}; what is masked is {kinds}, and of it", faults)
        )
    return found


def _rule(key: str, ratio: Ratio) -> _Rule:
    exact = exact_rate(ratio)
    if not 0 < exact < 1:
        raise DeltaLensError(f"mask ratio {ratio}{f' ({key})' if key else ''} is outside (0, 1)")
    parts = _KEY.fullmatch(key)
    assert parts is not None
    blocks = parts["blocks"]
    held = frozenset(block_numbers(blocks)) if blocks is not None else None
    return _Rule(key, exact, held, parts["name"])


def _refuse_unused(rules: Sequence[_Rule], layers: Sequence[Layer]) -> None:
    unused = [rule.key for rule in rules if not any(rule.fits(layer) for layer in layers)]
    if unused:
        names = sorted({_PROJECTION.sub("", layer.name.rpartition(".")[2]) for layer in layers})
        numbers = {number for layer in layers if (number := layer.block) is not None}
        there = f", blocks {min(numbers)} to {max(numbers)}" if numbers else ""
        raise DeltaLensError(
            f"mask_ratio for {', '.join(unused)}: no masked layer is called so; there "
            f"are {', '.join(sorted({layer.kind for layer in layers}))}; {', '.join(names)}{there}"
        )


def describe_ratios(mask_ratio: Ratios, layers: Sequence[Layer]) -> dict[str, str]:
    """Ratios as a file of masks tells them: by kind where one holds for all, else as given."""
    if isinstance(mask_ratio, Mapping):
        return {str(key): show_rate(exact_rate(ratio)) for key, ratio in mask_ratio.items()}
    return dict.fromkeys(
        sorted({layer.kind for layer in layers}), show_rate(exact_rate(mask_ratio))
    )
