"""Standard tasks through the lm-evaluation-harness, on a live model: requests are built once."""
