"""The gradients of every optimizer step, for all that read or mask them."""

from deltalens.gradients.parameters import (
    FLOATS,
    ChosenNames,
    dense,
    every_parameter,
    local_part,
    parameter_names,
)
from deltalens.gradients.steps import Gradient, GradientStep, PassedOver
from deltalens.gradients.watching import GradientPass, Subscriber

__all__ = [
    "FLOATS",
    "ChosenNames",
    "Gradient",
    "GradientPass",
    "GradientStep",
    "PassedOver",
    "Subscriber",
    "dense",
    "every_parameter",
    "local_part",
    "parameter_names",
]
