"""Pure torch on tensors: magnitudes, their order, and exact selection. No files, no logging."""
