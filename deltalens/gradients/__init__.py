"""The gradients of every optimizer step, for everything that reads or masks them."""

from deltalens.gradients.parameters import (
    FLOATS,
    choose_parameters,
    local_part,
    named_parameters,
    to_strided,
)
from deltalens.gradients.steps import Gradient, GradientStep, UnrankableGradients
from deltalens.gradients.subscriber import Subscriber
from deltalens.gradients.watching import GradientPass

__all__ = [
    "FLOATS",
    "Gradient",
    "GradientPass",
    "GradientStep",
    "Subscriber",
    "UnrankableGradients",
    "choose_parameters",
    "local_part",
    "named_parameters",
    "to_strided",
]
