"""Finds the packages; everything else about the project is in pyproject.toml.

`cli/` and `figures/` lie beside `deltalens/` and are installed inside it, which setuptools' own
discovery cannot express: it would install them as top-level packages.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["deltalens", "deltalens.*"]),
        *(f"deltalens.{package}" for package in find_packages(include=["cli", "cli.*"])),
        *(f"deltalens.{package}" for package in find_packages(include=["figures", "figures.*"])),
    ]
)
