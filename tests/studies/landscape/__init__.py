"""Loss landscapes: planes, points, records, pictures."""
