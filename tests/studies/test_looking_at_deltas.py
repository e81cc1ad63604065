"""Whether two models differ at all is asked by several threads at once."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import torch

from deltalens.studies.drop import DropPass
from deltalens.studies.selecting import DropSetting


class _SeenElsewhere:
    """A delta of zeros; while it is looked at, another thread finds one that is not."""

    def __init__(self, work: Any) -> None:
        self.work = work

    def count_nonzero(self) -> int:
        self.work.differs = True
        return 0


def test_a_difference_that_another_thread_saw_meanwhile_stays_seen() -> None:
    setting = DropSetting("random", Fraction(1, 2))
    work = DropPass(SimpleNamespace(entries=4), setting, None, False, None)  # type: ignore[arg-type]
    same = torch.ones(4)
    work.check(SimpleNamespace(ft=same, base=same, delta=_SeenElsewhere(work)))  # type: ignore[arg-type]
    assert work.differs
