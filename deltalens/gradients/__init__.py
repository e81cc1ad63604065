"""The gradients of every optimizer step, for all that read or mask them."""

from deltalens.gradients.parameters import (
    FLOATS,
    choose_parameters,
    dense,
    every_parameter,
    local_part,
    parameter_names,
)
from deltalens.gradients.steps import Gradient, GradientStep, PassedOver
from deltalens.gradients.watching import GradientPass, Subscriber

__all__ = [
    "FLOATS",
    "Gradient",
    "GradientPass",
    "GradientStep",
    "PassedOver",
    "Subscriber",
    "choose_parameters",
    "dense",
    "every_parameter",
    "local_part",
    "parameter_names",
]
