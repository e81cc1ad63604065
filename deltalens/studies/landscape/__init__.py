"""Loss landscapes: the loss on a line or a plane through weight space."""
