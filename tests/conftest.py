"""What all tests begin with."""

import signal

import pytest

pytest.register_assert_rewrite("tests.support")

# What a shell runs in the background has been told to ignore Ctrl-C, and hands that on; and with
# nohup that a terminal closes. Tests send both.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _default = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _default)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what there is by folder and marker, before `-m` and `-k` take their choice."""
    from tests.support.collected import COLLECTED, collected

    config.stash[COLLECTED] = collected(items)
