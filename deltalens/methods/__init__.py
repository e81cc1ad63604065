"""Sparse training methods as objects that work with any trainer."""
