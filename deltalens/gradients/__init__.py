"""The gradients of every optimizer step, for all that read or mask them."""

from deltalens.gradients.parameters import (
    FLOATS,
    choose_parameters,
    local_part,
    named_parameters,
    to_strided,
)
from deltalens.gradients.steps import Gradient, GradientStep, UnrankableGradients
from deltalens.gradients.watching import GradientPass, Subscriber

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
