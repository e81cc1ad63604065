"""Bad input: one clear message that names the case, and nothing left behind."""
