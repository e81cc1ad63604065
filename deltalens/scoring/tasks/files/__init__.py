"""Standard tasks that read a local file, as task files of the lm-evaluation-harness."""
