"""Trainers of other libraries, and what they need to carry a probe or a mask."""
