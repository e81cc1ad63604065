"""The specification of a sweep over layers: groups of consecutive blocks, and their cells."""

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
    """The specification of a sweep over layers, checked."""

    suite: Suite
    """What is measured in each cell."""
    sizes: tuple[int, ...]
    """Blocks per group, ascending."""
    groups: tuple[Group, ...]
    """All groups of all sizes."""
    include: str | None
    exclude: str | None

    def cells(self) -> list[Setting]:
        """List all cells in the order of the table: the fine-tune and the base, then every group
        that is dropped, then every group that is kept.

        Returns:
            The settings of the cells.
        """
        references = [_setting("ft"), _setting("base")]
        groups = [_setting(method, group) for method in ("drop", "keep") for group in self.groups]
        return [*references, *groups]

    def order(self) -> list[Setting]:
        """List all cells in the order of measurement.

        Cells that differ from the fine-tune in one group come first, by the group's first block,
        then the fine-tune; likewise for the base. So only the inputs of a single block have to be
        cached at any time.

        Returns:
            The settings of the cells.
        """
        ascending = sorted(self.groups, key=lambda group: group.blocks[0])
        return [
            *(_setting("drop", group) for group in ascending),
            _setting("ft"),
            *(_setting("keep", group) for group in ascending),
            _setting("base"),
        ]

    def identity(self) -> dict[str, Any]:
        """Collect everything in the specification that decides the numbers.

        Returns:
            JSON values by name.
        """
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
    """Divide the fine-tune's blocks into groups: 0 to g - 1, g to 2 g - 1, ...; the last group may
    be smaller.

    If the model has several lists of blocks, a group contains the same numbers of each list. Groups
    without any tensor that takes part are left out.

    Args:
        pairing: the fine-tune and its base.
        sizes: blocks per group; each size divides the model anew.

    Returns:
        The groups, size by size.

    Raises:
        DeltaLensError: the model has no blocks, no block takes part, no size is given, or a size is
            below 1 or larger than the model.
    """
    numbers = block_numbers(pairing.ft.tensors)
    if not numbers:
        raise DeltaLensError(
            fault_list(
                f"{pairing.ft.path}: no blocks (no tensor name contains a number); to drop tensors "
                "by name, use a drop study with `include`; the tensors are:",
                list(pairing.ft.tensors),
            )
        )
    if not sizes:
        raise DeltaLensError("no group size: set the number of blocks in a group, such as 1 or 4")
    taking_part = {block_number(pair.name) for pair in pairing.pairs}
    groups = [
        group
        for size in dict.fromkeys(sizes)
        for group in group_blocks(numbers, size, pairing.ft.path)
        if taking_part & set(group.blocks)
    ]
    if not groups:
        raise DeltaLensError(
            fault_list(
                "no block takes part; `include` and `exclude` select only:",
                [pair.name for pair in pairing.pairs],
            )
        )
    return tuple(groups)
