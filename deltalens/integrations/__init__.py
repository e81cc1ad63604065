"""Callbacks that attach a probe or a mask to the trainers of other libraries."""
