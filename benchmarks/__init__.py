"""Timings beside our peers', printed as ratios: `python -m benchmarks [NAME ...]`."""
