"""What to log while a model trains."""
