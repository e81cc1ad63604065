"""A tiny checkpoint and rows to train it on, written once for each module of tests."""

from tests.support.training_fixtures import base, rows

__all__ = ["base", "rows"]
