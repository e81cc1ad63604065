"""What studies found, in sentences and tables, from their records alone. No torch here."""
