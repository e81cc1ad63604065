"""The rows of a training in batches, for what looks at them before the first step."""

import pytest

from deltalens.training.calibration import CalibrationBatches


def batches(seed: int, number: int) -> list[list[int]]:
    given = CalibrationBatches(range(10), lambda rows: {"rows": rows}, 4, seed)
    return [batch["rows"] for batch in given(number)]


@pytest.mark.parametrize("number", [0, 1, 5])
def test_each_pass_has_every_row_once(number: int) -> None:
    found = batches(0, number)
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert sorted(row for batch in found for row in batch) == list(range(10))


def test_the_order_depends_on_the_number_of_the_pass_and_the_seed_alone() -> None:
    assert batches(0, 1) == batches(0, 1)
    assert len({str(batches(seed, number)) for seed in (0, 1) for number in (0, 1, 2)}) == 6
