"""Training a model by a named method, on trl."""
