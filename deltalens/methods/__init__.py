"""Sparse training methods, as objects that know no trainer."""
