"""What a sweep over layers was asked for: groups of consecutive blocks, and the cells they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.errors import DeltaLensError, fault_list
from deltalens.io.pairing import Pairing
from deltalens.io.records import Setting
from deltalens.names import Group, block_number, block_numbers, group_blocks
from deltalens.scoring.suite import Suite

__all__ = ["LayersSpec", "groups_taking_part"]


@dataclass(frozen=True, kw_only=True)
class LayersSpec:
    """The arguments of a sweep over layers, checked."""

    suite: Suite
    sizes: tuple[int, ...]
    groups: tuple[Group, ...]
    include: str | None
    exclude: str | None

    def cells(self) -> list[Setting]:
        """All cells in the order of the table: the two models, then what is dropped, size by size,
        then what is kept."""
        ends = [_setting("ft"), _setting("base")]
        return [*ends, *(_setting(m, group) for m in ("drop", "keep") for group in self.groups)]

    def order(self) -> list[Setting]:
        """All cells in the order of the work: what is near the fine-tune, then what is near the
        base, each from the first block to the last, and the model itself at the end: so what enters
        one block is all that has to be held."""
        by_place = sorted(self.groups, key=lambda group: group.blocks[0])
        return [
            *(_setting("drop", group) for group in by_place),
            _setting("ft"),
            *(_setting("keep", group) for group in by_place),
            _setting("base"),
        ]

    def identity(self) -> dict[str, Any]:
        """What of it decides the numbers, as JSON values."""
        return {
            "method": "drop",
            "groups": list(self.sizes),
            "include": self.include,
            "exclude": self.exclude,
            **self.suite.identity(),
        }


def _setting(method: str, group: Group | None = None) -> Setting:
    size, name = (group.size, str(group)) if group else (0, "")
    return {"method": method, "size": size, "group": name, "seed": 0}


def groups_taking_part(pairing: Pairing, sizes: Sequence[int]) -> tuple[Group, ...]:
    """The fine-tune's blocks in groups: 0 to g - 1, g to 2 g - 1, ...; the last can be shorter.

    Where a model has several lists of blocks, a group takes the same numbers from each. A group in
    which no tensor takes part is left out.

    Raises:
        DeltaLensError: there are no blocks, or a size is none or larger than the model.
    """
    numbers = block_numbers(pairing.ft.tensors)
    if not numbers:
        raise DeltaLensError(
            fault_list(
                f"{pairing.ft.path}: no blocks (tensors whose name has a number); put tensors back "
                "by name with `drop-study --include RE` instead; there are:",
                list(pairing.ft.tensors),
            )
        )
    if not sizes:
        raise DeltaLensError("no group: give the number of blocks in a group, such as 1 or 4")
    taking_part = {block_number(one.name) for one in pairing.pairs}
    groups = [
        group
        for size in dict.fromkeys(sizes)
        for group in group_blocks(numbers, size, pairing.ft.path)
        if taking_part & set(group.blocks)
    ]
    if not groups:
        raise DeltaLensError(
            fault_list(
                "no block takes part; what include and exclude leave is:",
                [one.name for one in pairing.pairs],
            )
        )
    return tuple(groups)
