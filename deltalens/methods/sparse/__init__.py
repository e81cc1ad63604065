"""Sparse fine-tuning of chosen entries (SPEFT, arXiv 2412.13488)."""
