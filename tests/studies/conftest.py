"""Pairs of checkpoints, written once a session."""

from tests.support.checkpoint_pairs import pair_of

__all__ = ["pair_of"]
