"""From a model to numbers: fidelity without data, loss and exact match with it."""
