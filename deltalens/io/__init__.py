"""Checkpoints, pairs of them, and the records that studies leave."""
