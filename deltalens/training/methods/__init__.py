"""The training methods. Importing this package imports no torch."""

from deltalens.training.methods.base import Method, Ready, setting
from deltalens.training.methods.registry import (
    Methods,
    labelled,
    method_class,
    method_of,
    read_methods,
    read_settings,
    trainable,
)

__all__ = [
    "Method",
    "Methods",
    "Ready",
    "labelled",
    "method_class",
    "method_of",
    "read_methods",
    "read_settings",
    "setting",
    "trainable",
]
