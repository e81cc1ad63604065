"""What to measure where: drops of delta parameters, and the studies built on them."""
