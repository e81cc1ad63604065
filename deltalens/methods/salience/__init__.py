"""Salience: how much each weight matters to the loss, by eight metrics (SPEFT, Sec. 3.2)."""

from deltalens.methods.salience.calibration import PassWatch
from deltalens.methods.salience.measuring import each_salience, salience, seconds_of_pass
from deltalens.methods.salience.passes import HessianWay
from deltalens.methods.salience.scores import Salience
from deltalens.methods.salience.targets import Targets, choose_targets

__all__ = [
    "HessianWay",
    "PassWatch",
    "Salience",
    "Targets",
    "choose_targets",
    "each_salience",
    "salience",
    "seconds_of_pass",
]
