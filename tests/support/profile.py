"""How the property tests draw their examples: the same ones in every run."""

from hypothesis import HealthCheck, settings


def repeatable(examples: int) -> settings:
    """Settings under which a test sees the same examples each time, and no clock."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
