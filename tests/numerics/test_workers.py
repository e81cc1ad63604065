"""Parts of a pass go to worker threads; results come in order, and are let go when taken."""

import threading
import time
import weakref

import pytest
import torch

from deltalens.numerics.workers import workers

THREADS = 2


class Result:
    """Something that a weak reference can follow."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items():
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number

    with workers() as mapper:
        assert list(mapper(slow_first, range(50))) == list(range(50))


def test_a_slow_reader_never_has_many_results_waiting():
    made: list[weakref.ref[Result]] = []
    lock = threading.Lock()

    def make(number: int) -> Result:
        result = Result(number)
        with lock:
            made.append(weakref.ref(result))
        return result

    most = 0
    with workers() as mapper:
        for result in mapper(make, range(200)):
            time.sleep(0.001)
            del result
            most = max(most, sum(one() is not None for one in made))
    assert len(made) == 200
    assert most <= 8 * THREADS, f"{most} results were alive at once"


def test_after_an_error_no_further_item_is_begun():
    begun = []

    def fail(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("broken")
        return number

    with workers() as mapper, pytest.raises(ValueError, match="broken"):
        list(mapper(fail, range(10_000)))
    assert len(begun) < 100
